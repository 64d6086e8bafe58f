//! Which learning rate each parameter has in an epoch.

use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::ParamGroup;

use super::{LrGroup, OptimConfig, OptimError, empty_group, is_under};

/// The part of the model whose layers have rates that fall with their depth.
const ENCODER: &str = "encoder";

/// The learning rates of all parameters, before the schedule's factor.
#[derive(Clone)]
pub(super) struct Rates {
    base: f64,
    groups: Vec<LrGroup>,
    /// Path of each parameter and its layer's share of the rate.
    shares: Vec<(String, f64)>,
    /// Parameters with another rate than the base.
    of_epoch: Vec<(ParamGroup, f64)>,
}

impl Rates {
    /// The rates of the first epoch for parameters with these paths.
    pub(super) fn new(config: &OptimConfig, paths: Vec<String>) -> Result<Self, OptimError> {
        for group in &config.groups {
            if !paths.iter().any(|path| is_under(path, &group.path)) {
                return Err(empty_group(&group.path, &paths));
            }
        }
        let shares = layer_shares(&paths, config.layer_decay);
        let mut rates = Self {
            base: config.lr,
            groups: config.groups.clone(),
            shares: paths.into_iter().zip(shares).collect(),
            of_epoch: Vec::new(),
        };
        rates.begin_epoch(1);
        Ok(rates)
    }

    /// Takes up the rates of an epoch, counted from 1.
    pub(super) fn begin_epoch(&mut self, epoch: usize) {
        let mut by_rate: Vec<(f64, Vec<&str>)> = Vec::new();
        for (path, share) in &self.shares {
            let fits = |group: &&LrGroup| group.from_epoch <= epoch && is_under(path, &group.path);
            let group = self.groups.iter().rev().find(fits);
            let rate = group.map_or(self.base, |group| group.lr) * share;
            match by_rate.iter_mut().find(|(other, _)| *other == rate) {
                Some((_, paths)) => paths.push(path),
                None if rate == self.base => {}
                None => by_rate.push((rate, vec![path])),
            }
        }
        let groups = by_rate.into_iter();
        self.of_epoch = groups
            .map(|(rate, paths)| (ParamGroup::from_paths(paths), rate))
            .collect();
    }

    /// The rates of the epoch times `factor`.
    pub(super) fn scaled(&self, factor: f64) -> ModuleLearningRate {
        let base = ModuleLrScheduler::new(self.base * factor);
        let groups = self.of_epoch.iter();
        groups
            .fold(base, |rates, (group, lr)| {
                rates.with_group(group.clone(), lr * factor)
            })
            .step()
    }
}

/// What the rate of each parameter is multiplied by: `decay` to the power of the layers that
/// follow; 1 outside the encoder.
fn layer_shares(paths: &[String], decay: f64) -> Vec<f64> {
    let mut layers: Vec<Option<usize>> = Vec::with_capacity(paths.len());
    let (mut block, mut count) = (None, 0);
    for path in paths {
        let in_encoder = is_under(path, ENCODER);
        if in_encoder && (count == 0 || self::block(path) != block) {
            block = self::block(path);
            count += 1;
        }
        layers.push(in_encoder.then_some(count));
    }
    let share = |layer: Option<usize>| layer.map_or(1.0, |l| decay.powi((count - l) as i32));
    layers.into_iter().map(share).collect()
}

/// The path up to its first number; none for a parameter outside numbered blocks. Numbers of
/// branches do not count: branches stand beside each other, and not one behind the other.
fn block(path: &str) -> Option<&str> {
    let (mut end, mut is_branch) = (0, false);
    for part in path.split('.') {
        end += part.len();
        if !is_branch && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(&path[..end]);
        }
        is_branch = part == "branches";
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::{Architecture, EncoderConfig, Norm, Padding};
    use crate::optim::parameter_paths;

    #[test]
    fn branches_of_a_block_are_one_layer() {
        let config = EncoderConfig {
            architecture: Architecture::MobileOneS0,
            width: 0.25,
            embedding: 8,
            padding: Padding::default(),
            norm: Norm::default(),
            branches: Some(2),
        };
        let encoder = config.init(0, &Device::flex()).unwrap();
        let paths: Vec<String> = parameter_paths(&encoder)
            .into_iter()
            .map(|path| format!("encoder.{path}"))
            .collect();
        let shares = layer_shares(&paths, 0.5);
        let stem = paths.iter().zip(&shares);
        let stem: Vec<f64> = stem
            .filter(|(path, _)| path.contains("stem"))
            .map(|(_, share)| *share)
            .collect();
        assert!(paths.iter().any(|path| path.contains("stem.scale")));
        // Twenty-one pairs of blocks and the head follow.
        assert_eq!(stem, vec![0.5f64.powi(43); stem.len()], "{paths:?}");
    }

    #[test]
    fn layers_are_blocks_and_what_stands_between_them() {
        let paths = [
            "encoder.net.stem.weight",
            "encoder.net.stem.bias",
            "encoder.net.blocks.0.conv.weight",
            "encoder.net.blocks.0.branches.3.weight",
            "encoder.net.blocks.1.conv.weight",
            "encoder.net.last.weight",
            "encoder.head.bias",
            "adapter.down.weight",
            "encoders.weight",
        ];
        let paths = paths.map(String::from);
        let expected = [0.125, 0.125, 0.25, 0.25, 0.5, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(layer_shares(&paths, 0.5), expected);
        assert_eq!(layer_shares(&paths, 1.0), [1.0; 9]);
        assert_eq!(layer_shares(&paths[7..], 0.5), [1.0; 2]);
    }
}
