//! What the tensors of a file do not say.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Activation, Scheme};
use crate::checkpoint::{Checkpoint, Container};

/// The `[clip]` table of a task file: what the tensors of a CLIP checkpoint do not say.
///
/// What is absent comes from the `config.json` (Hugging Face) or `open_clip_config.json` beside the
/// file. Without one:
///
/// - the activation is quick-GELU for OpenAI's own files (TorchScript archives, and files that
///   still hold their `input_resolution`) and for Hugging Face's names, GELU for all others;
/// - a head is 64 wide, but 80, 88 and 104 in the image sides of ViT-H, ViT-g and ViT-bigG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hints {
    /// Nonlinearity of the transformer blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// Attention heads of the image side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_heads: Option<usize>,
    /// Attention heads of the text side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_heads: Option<usize>,
}

/// Bytes read of a configuration file.
const MAX_CONFIG: u64 = 1 << 20;

impl Hints {
    /// The hints, completed from the configuration beside a file.
    pub(super) fn completed(self, file: &Path, image_width: Option<usize>) -> Self {
        let beside = |name: &str| json(&file.with_file_name(name));
        let found = beside("config.json").map(|config| hugging_face(&config));
        let found = found.filter(|found| *found != Self::default());
        let found =
            found.or_else(|| Some(open_clip(&beside("open_clip_config.json")?, image_width)));
        let found = found.unwrap_or_default();
        Self {
            activation: self.activation.or(found.activation),
            image_heads: self.image_heads.or(found.image_heads),
            text_heads: self.text_heads.or(found.text_heads),
        }
    }

    /// The activation given, or by the rule above.
    pub(super) fn activation(&self, checkpoint: &Checkpoint, scheme: Scheme) -> Activation {
        let openai = checkpoint.container() == Container::TorchScript
            || checkpoint.tensors().contains_key("input_resolution");
        self.activation.unwrap_or(match scheme {
            Scheme::HuggingFace => Activation::QuickGelu,
            Scheme::OpenAi if openai => Activation::QuickGelu,
            Scheme::OpenAi | Scheme::TinyClip => Activation::Gelu,
        })
    }
}

/// Attention heads of an image side of this size, by the rule above.
pub(super) fn image_heads(width: usize, layers: usize) -> usize {
    let head = match (width, layers) {
        (1280, 32) => 80,
        (1408, 40) => 88,
        (1664, 48) => 104,
        _ => 64,
    };
    (width / head).max(1)
}

fn json(path: &Path) -> Option<Value> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_CONFIG).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn hugging_face(config: &Value) -> Hints {
    let heads = |side: &str| size(&config[side]["num_attention_heads"]);
    let activation = config["vision_config"]["hidden_act"].as_str();
    let activation = activation.or(config["text_config"]["hidden_act"].as_str());
    Hints {
        activation: activation.and_then(|name| match name {
            "quick_gelu" => Some(Activation::QuickGelu),
            "gelu" => Some(Activation::Gelu),
            _ => None,
        }),
        image_heads: heads("vision_config"),
        text_heads: heads("text_config"),
    }
}

fn open_clip(config: &Value, image_width: Option<usize>) -> Hints {
    let model = &config["model_cfg"];
    let head = size(&model["vision_cfg"]["head_width"]);
    let quick = model["quick_gelu"].as_bool().unwrap_or(false);
    Hints {
        activation: model.is_object().then_some(match quick {
            true => Activation::QuickGelu,
            false => Activation::Gelu,
        }),
        image_heads: image_width.zip(head).map(|(width, head)| width / head),
        text_heads: size(&model["text_cfg"]["heads"]),
    }
}

fn size(value: &Value) -> Option<usize> {
    let size = value.as_u64().filter(|size| *size > 0)?;
    usize::try_from(size).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_beside_the_file_complete_what_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let none = Hints::default();
        assert_eq!(none.completed(&file, Some(768)), none);
        write(
            "open_clip_config.json",
            r#"{"model_cfg": {"quick_gelu": true, "vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 3}}}"#,
        );
        let open_clip = Hints {
            activation: Some(Activation::QuickGelu),
            image_heads: Some(24),
            text_heads: Some(3),
        };
        assert_eq!(none.completed(&file, Some(768)), open_clip);
        write(
            "config.json",
            r#"{"vision_config": {"hidden_act": "gelu", "num_attention_heads": 4}, "text_config": {}}"#,
        );
        let given = Hints {
            text_heads: Some(2),
            ..none
        };
        let completed = Hints {
            activation: Some(Activation::Gelu),
            image_heads: Some(4),
            text_heads: Some(2),
        };
        assert_eq!(given.completed(&file, Some(768)), completed);
        write("config.json", "{");
        assert_eq!(none.completed(&file, Some(768)), open_clip);
    }

    #[test]
    fn heads_of_the_published_models() {
        let heads = [
            (768, 12),
            (1024, 24),
            (1280, 32),
            (1408, 40),
            (1664, 48),
            (16, 2),
        ];
        let heads = heads.map(|(width, layers)| image_heads(width, layers));
        assert_eq!(heads, [12, 16, 16, 16, 16, 1]);
    }
}
