//! Parts of a model that do not learn, for some epochs or at all.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{OptimError, empty_group, fields, is_under, parameter_paths};

/// A part of the model that stays as it is.
///
/// Nothing is computed for its gradients, it is no part of the gradient norm, and its batch
/// normalisation works by its running statistics and leaves them alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// Module path, such as `encoder.features.blocks.0` or `text.context`: the parameters at and
    /// below it.
    pub path: String,
    /// The last epoch, counted from 1, in which it is frozen; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_epoch: Option<usize>,
}

/// Whether every path leads to a parameter of `module` and something is left to train.
///
/// # Errors
///
/// [`OptimError::EmptyGroup`] or [`OptimError::NothingToTrain`].
pub fn check<M: Module>(freeze: &[Freeze], module: &M) -> Result<(), OptimError> {
    let paths = parameter_paths(module);
    for part in freeze {
        if !paths.iter().any(|path| is_under(path, &part.path)) {
            return Err(empty_group(&part.path, &paths));
        }
    }
    let mut trainable = Trainable(false);
    apply(freeze, module.clone(), 1).visit(&mut trainable);
    match trainable.0 {
        true => Ok(()),
        false => Err(OptimError::NothingToTrain),
    }
}

/// The module with the parts frozen and released as `epoch` (from 1) asks for.
pub fn apply<M: Module>(freeze: &[Freeze], module: M, epoch: usize) -> M {
    let (frozen, released): (Vec<&Freeze>, Vec<&Freeze>) = freeze
        .iter()
        .partition(|part| part.until_epoch.is_none_or(|last| epoch <= last));
    let released = released.into_iter().filter_map(group);
    let module = released.fold(module, M::unfreeze_group);
    let frozen = frozen.into_iter().filter_map(group);
    frozen.fold(module, M::freeze_group)
}

/// All that lies at and below the path, switches such as that of batch normalisation included.
fn group(part: &Freeze) -> Option<ParamGroup> {
    let kinds = r"(?:[A-Z]\w*\.)*";
    let path = fields(&part.path)
        .collect::<Vec<_>>()
        .join(&format!(r"\.{kinds}"));
    ParamGroup::from_regex(format!(r"^{kinds}{path}(\.|$)")).ok()
}

struct Trainable(bool);

impl ModuleVisitor for Trainable {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.is_require_grad();
    }
}
