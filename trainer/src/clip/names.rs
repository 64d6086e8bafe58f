//! How files name the tensors of a CLIP model.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// A way to name the tensors of a CLIP model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// OpenAI's and OpenCLIP's (`visual.conv1.weight`).
    OpenAi,
    /// Hugging Face's `CLIPModel` (`vision_model.embeddings.patch_embedding.weight`).
    HuggingFace,
    /// TinyCLIP's (`_image_encoder.visual.conv1.weight`).
    TinyClip,
}

/// Where a tensor of the model is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// As it is.
    Whole(String),
    /// A matrix, with its axes swapped.
    Transposed(String),
    /// Query, key and value on top of each other.
    Joined([String; 3]),
}

/// What wrappers of a model put between its names.
const WRAPPERS: [&str; 2] = ["module", "_orig_mod"];
/// Names that hold nothing a model needs, by their ends.
const IGNORED: [&str; 9] = [
    "attn_mask",
    "context_length",
    "input_resolution",
    "logit_bias",
    "logit_scale",
    "num_batches_tracked",
    "patch_size",
    "position_ids",
    "vocab_size",
];

impl Scheme {
    /// The scheme of a file with these names, if it is a CLIP model's.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Option<Self> {
        let any = |prefixes: &[&str]| {
            let mut names = names.clone();
            names.any(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        };
        if any(&["vision_model.embeddings.", "text_model.embeddings."]) {
            Some(Self::HuggingFace)
        } else if any(&["_image_encoder.", "_text_encoder."]) {
            Some(Self::TinyClip)
        } else if any(&[
            "visual.",
            "token_embedding.",
            "transformer.resblocks.",
            "text.token_embedding.",
        ]) {
            Some(Self::OpenAi)
        } else {
            None
        }
    }

    /// Where the tensor of the given name of OpenAI's is.
    pub(super) fn piece(self, name: &str) -> Piece {
        match self {
            Self::OpenAi => Piece::Whole(name.into()),
            Self::HuggingFace => hugging_face(name),
            Self::TinyClip => Piece::Whole(match name {
                "logit_scale" => "_logit_scale.logit_scale".into(),
                name if name.starts_with("visual.") => format!("_image_encoder.{name}"),
                name => format!("_text_encoder.{name}"),
            }),
        }
    }

    /// Whether a name of the file belongs to the image side.
    pub(super) fn is_image(self, name: &str) -> bool {
        let prefixes: &[&str] = match self {
            Self::OpenAi => &["visual."],
            Self::HuggingFace => &["vision_model.", "visual_projection."],
            Self::TinyClip => &["_image_encoder."],
        };
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

impl Piece {
    /// The names in the file.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Whole(name) | Self::Transposed(name) => std::slice::from_ref(name),
            Self::Joined(names) => names,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenAi => "OpenAI / OpenCLIP",
            Self::HuggingFace => "Hugging Face",
            Self::TinyClip => "TinyCLIP",
        })
    }
}

/// Plain names to names of the file: without wrappers, and without the `text.` that some OpenCLIP
/// models put ahead of their text side.
pub(super) fn plain<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    let plain = |name: &String| {
        let parts: Vec<&str> = name
            .split('.')
            .filter(|part| !WRAPPERS.contains(part))
            .collect();
        let plain = parts.join(".");
        let plain = plain.strip_prefix("text.").unwrap_or(&plain);
        (plain.to_owned(), name.clone())
    };
    names.map(plain).collect()
}

/// Whether a name may be in a file without being of use.
pub(super) fn is_ignored(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    IGNORED.contains(&last)
}

fn hugging_face(name: &str) -> Piece {
    let (side, rest) = match name.strip_prefix("visual.") {
        Some(rest) => ("vision_model", rest),
        None => ("text_model", name),
    };
    if let Some(block) = rest.strip_prefix("transformer.resblocks.")
        && let Some((layer, part)) = block.split_once('.')
    {
        return hugging_face_block(&format!("{side}.encoder.layers.{layer}"), part);
    }
    let embeddings = format!("{side}.embeddings");
    match rest {
        "proj" => Piece::Transposed("visual_projection.weight".into()),
        "text_projection" => Piece::Transposed("text_projection.weight".into()),
        "class_embedding" => Piece::Whole(format!("{embeddings}.class_embedding")),
        "conv1.weight" => Piece::Whole(format!("{embeddings}.patch_embedding.weight")),
        "positional_embedding" => Piece::Whole(format!("{embeddings}.position_embedding.weight")),
        "token_embedding.weight" => Piece::Whole(format!("{embeddings}.token_embedding.weight")),
        _ => Piece::Whole(match rest.split_once('.') {
            // The spelling is that of the files.
            Some(("ln_pre", part)) => format!("{side}.pre_layrnorm.{part}"),
            Some(("ln_post", part)) => format!("{side}.post_layernorm.{part}"),
            Some(("ln_final", part)) => format!("{side}.final_layer_norm.{part}"),
            _ => rest.into(),
        }),
    }
}

fn hugging_face_block(layer: &str, part: &str) -> Piece {
    if let Some(kind) = part.strip_prefix("attn.in_proj_") {
        return Piece::Joined(
            ["q", "k", "v"].map(|of| format!("{layer}.self_attn.{of}_proj.{kind}")),
        );
    }
    let renamed = [
        ("attn.out_proj", "self_attn.out_proj"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ];
    let renamed = renamed.iter().find_map(|(from, to)| {
        let rest = part.strip_prefix(from)?;
        Some(format!("{layer}.{to}{rest}"))
    });
    Piece::Whole(renamed.unwrap_or_else(|| format!("{layer}.{part}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_scheme() {
        let whole = |scheme: Scheme, name: &str| match scheme.piece(name) {
            Piece::Whole(name) => name,
            other => panic!("{other:?}"),
        };
        for (name, hugging_face, tiny) in [
            ("logit_scale", "logit_scale", "_logit_scale.logit_scale"),
            (
                "visual.ln_pre.bias",
                "vision_model.pre_layrnorm.bias",
                "_image_encoder.visual.ln_pre.bias",
            ),
            (
                "visual.transformer.resblocks.11.mlp.c_proj.weight",
                "vision_model.encoder.layers.11.mlp.fc2.weight",
                "_image_encoder.visual.transformer.resblocks.11.mlp.c_proj.weight",
            ),
            (
                "transformer.resblocks.0.ln_2.weight",
                "text_model.encoder.layers.0.layer_norm2.weight",
                "_text_encoder.transformer.resblocks.0.ln_2.weight",
            ),
            (
                "positional_embedding",
                "text_model.embeddings.position_embedding.weight",
                "_text_encoder.positional_embedding",
            ),
        ] {
            assert_eq!(whole(Scheme::OpenAi, name), name);
            assert_eq!(whole(Scheme::HuggingFace, name), hugging_face);
            assert_eq!(whole(Scheme::TinyClip, name), tiny);
        }
        let queries = Scheme::HuggingFace.piece("visual.transformer.resblocks.2.attn.in_proj_bias");
        assert_eq!(
            queries.names()[1],
            "vision_model.encoder.layers.2.self_attn.k_proj.bias"
        );
        let projection = Scheme::HuggingFace.piece("visual.proj");
        assert_eq!(
            projection,
            Piece::Transposed("visual_projection.weight".into())
        );
    }

    #[test]
    fn wrappers_are_taken_off() {
        let names = [
            "_image_encoder.module.visual.conv1.weight",
            "_orig_mod.logit_scale",
            "text.ln_final.bias",
        ];
        let names = names.map(String::from);
        let plain = plain(names.iter());
        let keys: Vec<_> = plain.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "_image_encoder.visual.conv1.weight",
                "ln_final.bias",
                "logit_scale"
            ]
        );
        assert_eq!(plain["ln_final.bias"], "text.ln_final.bias");
    }
}
