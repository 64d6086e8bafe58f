//! From a float transformer to int8, with the evidence for it.

use numclip::bundle::Precision;

use super::judge::{Judge, mean_distance, open};
use super::layers::{Costs, LayerCost, share_within};
use super::quantization::{
    Evidence, Quantization, RANKING_IMAGES, Source, calibration_images, failed, in_floats,
};
use super::search::{Candidate, Found, leave_floats, search};
use super::{ExportError, Options};
use crate::model::vit::Vit;
use crate::quantize::affine::Affine;
use crate::quantize::vit::{Calibrated, Float, Recipe};

impl Source<'_> {
    /// Quantises the products of a transformer with constant weights as `options` want it.
    ///
    /// # Errors
    /// [`ExportError`] when the network cannot be run, or there are no images to compare on.
    pub fn quantize_vit(
        &self,
        vit: &Vit,
        options: &Options<'_>,
    ) -> Result<Quantization, ExportError> {
        let (config, wanted) = (self.config, &options.int8);
        (options.stage)("calibrating");
        let images = calibration_images(config, self.prepared)?;
        let tail = self.model.folded_adapter();
        let float = Float {
            vit,
            tail: tail.as_ref(),
            size: config.preprocess.size as usize,
        };
        let input = Affine::of_input(&config.preprocess);
        let mut calibrated = Calibrated::new(float, input, &images).map_err(failed)?;
        let first = Recipe {
            range: wanted.changes.range.unwrap_or(config.export.range),
            smoothing: wanted.changes.smoothing.unwrap_or(config.export.smoothing),
        };
        let evidence = Evidence {
            calibration_images: images.len(),
            budget: wanted.budget,
            ..Evidence::default()
        };
        let Some(judge) = self.judge(wanted)? else {
            let tower = calibrated.quantize(&first, &[]).map_err(failed)?;
            return Ok(Quantization {
                bytes: tower.bytes,
                evidence: Evidence {
                    method: first.to_string(),
                    ..evidence
                },
            });
        };
        let mut candidate =
            |recipe: &Recipe| self.transformer(&judge, options, &mut calibrated, recipe, &[]);
        let mut found = match wanted.search {
            true => search(&wanted.budget, first, &Recipe::CHOICES, candidate)?,
            false => Found::new(first, candidate(&first)?, &wanted.budget),
        };
        let leaves_floats = wanted.leaves_floats(&found.best.score);
        let costs = match leaves_floats || wanted.details {
            true => {
                (options.stage)("measuring each layer");
                Some(self.product_costs(&judge, &mut calibrated, &found.recipe)?)
            }
            false => None,
        };
        if let Some(costs) = costs.as_ref().filter(|_| leaves_floats) {
            self.leave_products(&judge, options, &mut calibrated, &mut found, costs)?;
        }
        Ok(Quantization {
            bytes: found.best.bytes,
            evidence: Evidence {
                method: found.best.method,
                tried: found.tried,
                costs: costs.filter(|_| wanted.details),
                ..evidence
            },
        })
    }

    fn transformer(
        &self,
        judge: &Judge<'_>,
        options: &Options<'_>,
        calibrated: &mut Calibrated<'_>,
        recipe: &Recipe,
        floats: &[String],
    ) -> Result<Candidate<()>, ExportError> {
        let names: Vec<&str> = floats.iter().map(String::as_str).collect();
        let method = match names.is_empty() {
            true => recipe.to_string(),
            false => format!("{recipe}, {}", in_floats(&names)),
        };
        (options.stage)(&format!("trying {method}"));
        let tower = calibrated.quantize(recipe, floats).map_err(failed)?;
        self.judged(judge, &options.int8.budget, method, (), tower.bytes)
    }

    /// Leaves the most sensitive products in floats, as for convolutions.
    fn leave_products(
        &self,
        judge: &Judge<'_>,
        options: &Options<'_>,
        calibrated: &mut Calibrated<'_>,
        found: &mut Found<Recipe, ()>,
        costs: &Costs,
    ) -> Result<(), ExportError> {
        let (wanted, recipe) = (&options.int8, found.recipe);
        let mut ranked: Vec<&LayerCost> = costs.layers.iter().collect();
        ranked.sort_by(|a, b| b.drift.total_cmp(&a.drift));
        let names: Vec<String> = ranked.iter().map(|layer| layer.name.clone()).collect();
        let quantize =
            |count: usize| self.transformer(judge, options, calibrated, &recipe, &names[..count]);
        let (asked, budget) = (wanted.float_layers, &wanted.budget);
        leave_floats(asked, budget, names.len(), found, quantize)
    }

    /// What it costs to multiply each value alone in int8.
    fn product_costs(
        &self,
        judge: &Judge<'_>,
        calibrated: &mut Calibrated<'_>,
        recipe: &Recipe,
    ) -> Result<Costs, ExportError> {
        let some = judge.some(RANKING_IMAGES);
        let threshold = self.config.thresholds()[0];
        let right = |values: &[f32]| share_within(values, &some.labels, threshold);
        let mut layers = Vec::new();
        for name in calibrated.products().to_vec() {
            let tower = calibrated.alone(recipe, &name).map_err(failed)?;
            let dim = self.prepared.embeddings.dim;
            let model = open(self.config, dim, Precision::Int8, &tower.bytes)?;
            let values = some.values_of(model.as_ref())?;
            let Some(losses) = calibrated.losses(recipe, &name).map_err(failed)? else {
                continue;
            };
            layers.push(LayerCost {
                name,
                kind: "what is multiplied with constant weights".into(),
                output: [losses.width, 1, 1],
                macs: 0,
                bytes: 0,
                range: Some(losses.range),
                precision: Precision::Int8,
                saturated: losses.saturated,
                sqnr_alone: losses.sqnr,
                sqnr_whole: None,
                mae_increase: mean_distance(&values, &some.labels)
                    - mean_distance(&some.values, &some.labels),
                drift: mean_distance(&values, &some.values),
                score_increase: right(&values) - right(&some.values),
            });
        }
        Ok(Costs {
            images: some.labels.len(),
            threshold,
            layers,
        })
    }
}
