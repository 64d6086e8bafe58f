//! How weight files name their tensors.

use std::fmt;

use super::layers::Padding;
use super::mobilenet;
use crate::checkpoint::Checkpoint;

/// How a file names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// timm's MobileOne with its branches (`stem.conv_kxk.0.conv.weight`).
    TimmMobileOne,
    /// timm's MobileOne after re-parameterisation (`stem.reparam_conv.weight`).
    TimmMobileOneFolded,
    /// timm's MobileNetV2 (`conv_stem.weight`).
    TimmMobileNetV2,
    /// torchvision's MobileNetV2 (`features.0.0.weight`).
    TorchvisionMobileNetV2,
    /// MobileNetV2 with folded batch normalisation and TensorFlow's padding: convolutions numbered
    /// in network order (`conv00.conv.weight`, `conv01.dw.weight`, …). Expects input
    /// `(x − 127.5) / 127.5`.
    FoldedMobileNetV2,
    /// timm's vision transformers (`blocks.0.attn.qkv.weight`).
    TimmVit,
}

impl Format {
    /// Every format and a tensor that only its files have.
    const ALL: [(Self, &'static str); 6] = [
        (Self::TimmMobileOne, "stem.conv_kxk.0.conv.weight"),
        (Self::TimmMobileOneFolded, "stem.reparam_conv.weight"),
        (Self::TimmMobileNetV2, "conv_stem.weight"),
        (Self::TorchvisionMobileNetV2, "features.0.0.weight"),
        (Self::FoldedMobileNetV2, "conv00.conv.weight"),
        (Self::TimmVit, "blocks.0.attn.qkv.weight"),
    ];

    /// The format of a file, if it is a known one.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let mut formats = Self::ALL.into_iter();
        let known = formats.find(|(_, name)| checkpoint.tensors().contains_key(*name));
        known.map(|(format, _)| format)
    }

    /// Whether batch normalisation is folded in already.
    pub fn is_folded(self) -> bool {
        matches!(self, Self::TimmMobileOneFolded | Self::FoldedMobileNetV2)
    }

    /// Whether the file holds a MobileOne.
    pub fn is_mobileone(self) -> bool {
        matches!(self, Self::TimmMobileOne | Self::TimmMobileOneFolded)
    }

    /// Where the network was trained to put its zeros.
    pub fn padding(self) -> Padding {
        if self == Self::FoldedMobileNetV2 {
            Padding::Same
        } else {
            Padding::Symmetric
        }
    }

    /// What the names of the classifier start with.
    pub(super) fn classifier(self) -> &'static str {
        match self {
            Self::TimmMobileOne | Self::TimmMobileOneFolded | Self::TimmVit => "head.",
            Self::TimmMobileNetV2 | Self::TorchvisionMobileNetV2 => "classifier.",
            Self::FoldedMobileNetV2 => "conv52.",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimmMobileOne => "timm's MobileOne",
            Self::TimmMobileOneFolded => "timm's re-parameterised MobileOne",
            Self::TimmMobileNetV2 => "timm's MobileNetV2",
            Self::TorchvisionMobileNetV2 => "torchvision's MobileNetV2",
            Self::FoldedMobileNetV2 => "MobileNetV2 with folded batch normalisation",
            Self::TimmVit => "timm's vision transformer",
        })
    }
}

/// Names of convolution and batch normalisation of MobileNetV2's units, in network order.
pub(super) fn mobilenet_names(format: Format) -> Vec<[String; 2]> {
    match format {
        Format::TorchvisionMobileNetV2 => torchvision_names(),
        Format::FoldedMobileNetV2 => folded_names(),
        _ => timm_names(),
    }
}

fn torchvision_names() -> Vec<[String; 2]> {
    let mut names = vec![["features.0.0".to_owned(), "features.0.1".to_owned()]];
    let expansions = mobilenet::STAGES
        .into_iter()
        .flat_map(|[e, _, n, _]| vec![e; n]);
    for (index, expansion) in (1..).zip(expansions) {
        let block = format!("features.{index}.conv");
        let filters = if expansion == 1 { 1 } else { 2 };
        for i in 0..filters {
            names.push([format!("{block}.{i}.0"), format!("{block}.{i}.1")]);
        }
        names.push([
            format!("{block}.{filters}"),
            format!("{block}.{}", filters + 1),
        ]);
    }
    names.push(["features.18.0".to_owned(), "features.18.1".to_owned()]);
    names
}

fn timm_names() -> Vec<[String; 2]> {
    let mut names = vec![["conv_stem".to_owned(), "bn1".to_owned()]];
    for (stage, [expansion, _, repeats, _]) in mobilenet::STAGES.into_iter().enumerate() {
        let convs: &[&str] = match expansion {
            1 => &["conv_dw", "conv_pw"],
            _ => &["conv_pw", "conv_dw", "conv_pwl"],
        };
        for repeat in 0..repeats {
            let block = format!("blocks.{stage}.{repeat}");
            for (number, conv) in (1..).zip(convs) {
                names.push([format!("{block}.{conv}"), format!("{block}.bn{number}")]);
            }
        }
    }
    names.push(["conv_head".to_owned(), "bn2".to_owned()]);
    names
}

/// The stem, then depthwise and pointwise in turn after the first block's pair, numbered through.
fn folded_names() -> Vec<[String; 2]> {
    timm_names()
        .into_iter()
        .enumerate()
        .map(|(index, [conv, _])| {
            let kind = if conv.ends_with("conv_dw") {
                "dw"
            } else {
                "conv"
            };
            [format!("conv{index:02}.{kind}"), String::new()]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Convolution names at the given positions of the 52 units.
    fn check(format: Format, expected: [(usize, &str, &str); 6]) {
        let names = mobilenet_names(format);
        assert_eq!(names.len(), 52);
        for (index, conv, norm) in expected {
            assert_eq!(names[index], [conv, norm], "{format}, unit {index}");
        }
    }

    #[test]
    fn torchvision_counts_layers_inside_blocks() {
        check(
            Format::TorchvisionMobileNetV2,
            [
                (0, "features.0.0", "features.0.1"),
                (1, "features.1.conv.0.0", "features.1.conv.0.1"),
                (2, "features.1.conv.1", "features.1.conv.2"),
                (4, "features.2.conv.1.0", "features.2.conv.1.1"),
                (50, "features.17.conv.2", "features.17.conv.3"),
                (51, "features.18.0", "features.18.1"),
            ],
        );
    }

    #[test]
    fn timm_counts_stages_and_norms() {
        check(
            Format::TimmMobileNetV2,
            [
                (0, "conv_stem", "bn1"),
                (2, "blocks.0.0.conv_pw", "blocks.0.0.bn2"),
                (3, "blocks.1.0.conv_pw", "blocks.1.0.bn1"),
                (4, "blocks.1.0.conv_dw", "blocks.1.0.bn2"),
                (50, "blocks.6.0.conv_pwl", "blocks.6.0.bn3"),
                (51, "conv_head", "bn2"),
            ],
        );
    }
}
