//! From a trained run to a bundle that a device can trust.
//!
//! ```text
//! best weights → fold → ONNX → calibrate → search → int8 → measure both → golden → write → open → replay
//! ```

mod aware;
mod folds;
mod golden;
mod judge;
mod layers;
mod measure;
pub mod page;
mod quantization;
mod search;
mod transformer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module as _;
use burn::tensor::Device;
use numclip::bundle::{
    self, BinsSection, Bundle, BundleError, Contents, EncoderFile, EncoderFormat, Manifest,
    ModelSection, Precision, Provenance, Report, SCHEMA, TaskSection,
};
use numclip::encode::EncodeError;
use numclip::estimate::{Calibration, Estimator};
use numclip::pipeline::Pipeline;
use numclip::verify::{ReplayError, replay};
use thiserror::Error;

use crate::config::Config;
use crate::data::Unreadable;
use crate::fit::{self, FitError, Prepared, Run, Weights, embed_all, loader, prepare, untrained};
use crate::graph::ConvNet;
use crate::model::numclip::NumClip;
use crate::model::{Architecture, ImageEncoder, NotConvolutional};
use crate::quantize::{onnx, towers};
use crate::report::{Measured, NamedMetrics, points};
use measure::Encoded;
use quantization::{Quantization, Source, broken, timed};

pub use judge::{Latency, Score};
pub use layers::{Costs, LayerCost};
pub use measure::calibrate_interval;
pub use quantization::{Evidence, Wanted};
pub use search::{Budget, Tried};

/// What an export is asked.
pub struct Options<'a> {
    /// Folder of the run.
    pub run: &'a Path,
    /// Folder of the bundle.
    pub out: &'a Path,
    /// Arithmetic of the bundle's encoder.
    pub precision: Precision,
    /// Which of the run's weights.
    pub weights: Weights,
    /// How int8 is to be found.
    pub int8: Wanted,
    /// Runs of a cross-validation whose test images fit the interval; none takes the validation
    /// images of the run.
    pub interval_from: &'a [PathBuf],
    /// Called with the name of each stage as it begins.
    pub stage: &'a dyn Fn(&str),
}

/// What an export gave.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Measures of both precisions, as the bundle holds them.
    pub reports: Vec<Report>,
    /// The same for the report, with the estimates of the exported encoder.
    pub measured: Measured,
    /// Size of the encoder, bytes.
    pub encoder_bytes: usize,
    /// Multiply-accumulates for one picture.
    pub macs: u64,
    /// Smallest cosine between float and int8 embeddings of validation images (test images without
    /// any); none without int8.
    pub lowest_cosine: Option<f32>,
    /// How it was quantised, and what speaks for that.
    pub evidence: Evidence,
}

/// Why there is no bundle.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The run cannot be read.
    #[error(transparent)]
    Run(#[from] FitError),
    /// The encoder has no form of the precision asked for.
    #[error(transparent)]
    Encoder(#[from] NotConvolutional),
    /// Fine-tuning with the rounding inside is for convolutional encoders.
    #[error(
        "--qat-epochs: transformers are not fine-tuned with the rounding inside; --search compares \
         ways of quantising them"
    )]
    Aware,
    /// The data set is not the one the run was trained on.
    #[error(
        "the images, their labels or their splits are not those the run was trained on (digest \
         {got}, expected {expected}); restore the table and its images, or train again"
    )]
    Data {
        /// Digest that the run keeps.
        expected: String,
        /// Digest now.
        got: String,
    },
    /// The engine cannot run what was exported.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Ranges could not be observed.
    #[error("calibration: {0}")]
    Calibrate(String),
    /// There is nothing to compare ways of quantising on.
    #[error(
        "ways of quantising are compared on validation images, of which this run has none; set \
         data.split, or export without a search, a budget and a report"
    )]
    NoValidation,
    /// The interval cannot be fitted on the images of a run.
    #[error("--interval-from {}: {message}", run.display())]
    Interval {
        /// Folder of that run.
        run: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// There is nothing to compare the exported network on.
    #[error(
        "the exported network is compared with the trained one on validation or test images, of \
         which this run has none; set data.split.val_fraction and train again"
    )]
    NothingToCompare,
    /// The encoder costs more than it may.
    #[error(
        "the budget is broken: {}; no bundle was written (--force writes it all the same)",
        .0.broken.join("; ")
    )]
    Budget(Box<Evidence>),
    /// The bundle cannot be written or read back.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A golden case cannot be replayed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The exported float network is not the trained one.
    #[error(
        "the exported network differs from the trained one: cosine {cosine} on image {image}, expected at least {}; please report this",
        MIN_COSINE
    )]
    Fold {
        /// The image.
        image: PathBuf,
        /// Cosine between the embeddings.
        cosine: f32,
    },
    /// The written bundle does not give what was measured.
    #[error("{}: golden case {case} differs when read back (cosine {cosine}); no bundle was kept", path.display())]
    Parity {
        /// Where the bundle was to be.
        path: PathBuf,
        /// The case.
        case: usize,
        /// Cosine between the embeddings.
        cosine: f32,
    },
}

/// The least cosine between the trained and the exported float network.
pub const MIN_COSINE: f32 = 0.9999;

const ENCODER: &str = "encoder.onnx";

/// Exports weights of a run.
///
/// # Errors
/// [`ExportError`]; the folder of the bundle then holds what it held before.
pub fn export(options: &Options<'_>) -> Result<Exported, ExportError> {
    (options.stage)("reading the run and its data");
    let (run, config, recorded) = Run::read(options.run)?;
    let device = Device::flex();
    let prepared = prepare(&config, &device)?;
    let [expected, got] = recorded.digests(&config, &prepared)?;
    if expected != got {
        return Err(ExportError::Data { expected, got });
    }
    let model = run
        .load(untrained(&config, &prepared, &device)?, options.weights)?
        .valid();
    let export = Export {
        config: &config,
        prepared: &prepared,
        model: &model,
        options,
        recorded: &recorded,
    };
    export.run()
}

/// The trained network in its float form.
struct Float {
    /// ONNX.
    bytes: Vec<u8>,
    /// Multiply-accumulates for one picture.
    macs: u64,
    /// The same as plain values, of which int8 is made; a tower of CLIP has none.
    net: Option<ConvNet>,
}

/// The int8 form, and what it makes of the images.
struct Int8 {
    bytes: Vec<u8>,
    encoded: Encoded,
    evidence: Evidence,
}

impl Float {
    fn of(model: &NumClip, size: usize) -> Result<Self, NotConvolutional> {
        let tail = model.folded_adapter();
        let tower = match model.encoder() {
            ImageEncoder::Vit(vit) => towers::vit(vit, tail.as_ref(), size),
            ImageEncoder::ResNet(net) => towers::resnet(net, tail.as_ref(), size),
            ImageEncoder::Conv(_) => {
                let net = model.fold(size)?;
                return Ok(Self {
                    bytes: onnx::float(&net),
                    macs: net.macs(),
                    net: Some(net),
                });
            }
        };
        Ok(Self {
            bytes: tower.bytes,
            macs: tower.macs,
            net: None,
        })
    }
}

struct Export<'a> {
    config: &'a Config,
    prepared: &'a Prepared,
    model: &'a NumClip,
    options: &'a Options<'a>,
    /// What the run was made from.
    recorded: &'a fit::Provenance,
}

impl Export<'_> {
    fn run(&self) -> Result<Exported, ExportError> {
        let stage = self.options.stage;
        let network = Float::of(self.model, self.config.preprocess.size as usize)?;
        if self.options.precision == Precision::Int8 {
            self.check_int8()?;
        }
        let across = self.interval_across()?;
        stage("comparing the exported network with the trained one");
        let float = self.encode(Precision::F32, &network.bytes)?;
        if float.compared().labels.is_empty() {
            return Err(ExportError::NothingToCompare);
        }
        self.check_fold(&float)?;
        let estimator = self.prepared.estimator(self.config, self.model, None)?;
        let int8 = self.quantized(&network, &float, &estimator)?;
        let (bytes, chosen) = match (self.options.precision, &int8) {
            (Precision::Int8, Some(int8)) => (&int8.bytes, &int8.encoded),
            _ => (&network.bytes, &float),
        };
        let evidence = self.evidence(&network, &float, int8.as_ref())?;
        let (interval, fitted_on) =
            across.unwrap_or_else(|| (self.own_interval(&estimator, chosen), String::new()));
        let estimator = self
            .prepared
            .estimator(self.config, self.model, interval.clone())?;
        let int8 = int8.as_ref().map(|int8| &int8.encoded);
        let reports = self.reports(&float, int8, &estimator);
        stage("writing the bundle and reading it back");
        let exported = Exported {
            encoder_bytes: bytes.len(),
            macs: network.macs,
            lowest_cosine: int8.map(|int8| float.lowest_cosine(int8)),
            measured: self.measured(chosen, &estimator, &reports),
            reports: reports.clone(),
            evidence,
        };
        let golden = golden::cases(self.config, self.prepared, bytes, &estimator)?;
        let contents = Contents {
            encoders: BTreeMap::from([(ENCODER.to_owned(), bytes.clone())]),
            embeddings: self.prepared.bin_embeddings(self.model)?.values,
            golden,
        };
        let mut manifest = self.manifest(interval, reports, &exported.evidence);
        manifest.provenance.interval = fitted_on;
        self.write(&manifest, &contents)?;
        Ok(exported)
    }

    /// The interval by the runs that were named for it, and what it was fitted on.
    fn interval_across(&self) -> Result<Option<(Option<Calibration>, String)>, ExportError> {
        let runs = self.options.interval_from;
        if runs.is_empty() {
            return Ok(None);
        }
        (self.options.stage)("fitting the interval on the images of other runs");
        let task = (self.config, self.prepared);
        folds::interval(runs, task, self.options.weights).map(Some)
    }

    /// The interval by the run's validation images.
    fn own_interval(&self, estimator: &Estimator, chosen: &Encoded) -> Option<Calibration> {
        let (dataset, coverage) = (&self.prepared.dataset, self.config.export.coverage);
        calibrate_interval(estimator, dataset, &chosen.val, coverage)
    }

    /// The int8 form; none of CLIP's residual networks, nor of a transformer that leaves in floats.
    fn quantized(
        &self,
        network: &Float,
        float: &Encoded,
        estimator: &Estimator,
    ) -> Result<Option<Int8>, ExportError> {
        let options = self.options;
        let int8 = match (&network.net, self.model.encoder()) {
            (Some(net), _) => self.int8(float, estimator, |source| source.quantize(net, options)),
            (None, ImageEncoder::Vit(vit)) if options.precision == Precision::Int8 => {
                self.int8(float, estimator, |source| source.quantize_vit(vit, options))
            }
            (None, _) => return Ok(None),
        };
        int8.map(Some)
    }

    /// Measures of both forms on validation and test images.
    fn reports(
        &self,
        float: &Encoded,
        int8: Option<&Encoded>,
        estimator: &Estimator,
    ) -> Vec<Report> {
        let (bins, thresholds) = (&self.config.bin, self.config.thresholds());
        let int8 = int8.map(|encoded| (Precision::Int8, encoded));
        let all = [(Precision::F32, float)].into_iter().chain(int8);
        all.flat_map(|(precision, encoded)| {
            encoded.reports(precision, bins, estimator, &thresholds)
        })
        .collect()
    }

    /// What is asked must be possible for this kind of encoder.
    fn check_int8(&self) -> Result<(), ExportError> {
        match self.model.encoder() {
            ImageEncoder::ResNet(_) => Err(NotConvolutional.into()),
            ImageEncoder::Vit(_) if self.options.int8.aware_epochs > 0 => Err(ExportError::Aware),
            _ => Ok(()),
        }
    }

    fn encode(&self, precision: Precision, bytes: &[u8]) -> Result<Encoded, ExportError> {
        Encoded::new(self.config, self.prepared, precision, bytes)
    }

    /// The float network must give the embeddings of the trained model.
    fn check_fold(&self, float: &Encoded) -> Result<(), ExportError> {
        let compared = float.compared();
        let indices: Vec<usize> = compared
            .indices
            .iter()
            .take(self.config.train.batch_size)
            .copied()
            .collect();
        let loader = loader(self.config, self.prepared, &indices, Unreadable::Stop)?;
        let trained = embed_all(self.config, self.model, &loader)?;
        for (position, embedding) in trained.embeddings.iter().enumerate() {
            let cosine = numclip::verify::cosine(embedding, &compared.embeddings[position]);
            if cosine < MIN_COSINE {
                let image = self.prepared.dataset.samples()[indices[position]]
                    .path
                    .clone();
                return Err(ExportError::Fold { image, cosine });
            }
        }
        Ok(())
    }

    fn int8(
        &self,
        float: &Encoded,
        estimator: &Estimator,
        quantize: impl FnOnce(&Source<'_>) -> Result<Quantization, ExportError>,
    ) -> Result<Int8, ExportError> {
        let source = Source {
            config: self.config,
            prepared: self.prepared,
            model: self.model,
            float,
            estimator,
        };
        let Quantization { bytes, evidence } = quantize(&source)?;
        (self.options.stage)("measuring int8");
        Ok(Int8 {
            encoded: self.encode(Precision::Int8, &bytes)?,
            bytes,
            evidence,
        })
    }

    /// What speaks for the encoder, and whether its budget holds on all validation images.
    fn evidence(
        &self,
        network: &Float,
        float: &Encoded,
        int8: Option<&Int8>,
    ) -> Result<Evidence, ExportError> {
        let (config, wanted) = (self.config, &self.options.int8);
        let mut encoders = vec![(Precision::F32, network.bytes.as_slice())];
        encoders.extend(int8.map(|int8| (Precision::Int8, int8.bytes.as_slice())));
        let (mut evidence, increase) = match (self.options.precision, int8) {
            (Precision::Int8, Some(int8)) => {
                encoders.reverse();
                let estimator = self.prepared.estimator(config, self.model, None)?;
                let error = |encoded: &Encoded| encoded.val_error(&estimator);
                let pair = error(&int8.encoded).zip(error(float));
                (
                    int8.evidence.clone(),
                    pair.map(|(int8, float)| int8 - float),
                )
            }
            _ => (Evidence::default(), None),
        };
        let dim = self.prepared.embeddings.dim;
        evidence.latencies = timed(config, dim, wanted, &encoders)?;
        let unit = &config.task.unit;
        evidence.broken = broken(&wanted.budget, increase, &evidence.latencies, unit);
        match evidence.broken.is_empty() || wanted.force {
            true => Ok(evidence),
            false => Err(ExportError::Budget(Box::new(evidence))),
        }
    }

    fn measured(&self, chosen: &Encoded, estimator: &Estimator, reports: &[Report]) -> Measured {
        let precision = |precision: Precision| format!("{precision:?}").to_lowercase();
        let (split, embedded) = chosen.most_telling();
        let estimates: Vec<_> = embedded
            .embeddings
            .iter()
            .map(|e| estimator.estimate(e))
            .collect();
        let named = |report: &Report| NamedMetrics {
            name: format!("{}, {}", report.split, precision(report.precision)),
            metrics: report.metrics.clone(),
        };
        Measured {
            results: reports.iter().map(named).collect(),
            estimates_of: format!("{split}, {}", precision(self.options.precision)),
            estimates: points(self.prepared, &embedded.indices, &estimates),
        }
    }

    fn manifest(
        &self,
        interval: Option<Calibration>,
        report: Vec<Report>,
        evidence: &Evidence,
    ) -> Manifest {
        let (config, prepared) = (self.config, self.prepared);
        Manifest {
            schema: SCHEMA,
            logit_scale: config.model.head.logit_scale as f32,
            model: ModelSection {
                name: config.task.name.clone(),
                version: config.task.version.clone(),
            },
            task: TaskSection {
                name: config.task.name.clone(),
                unit: config.task.unit.clone(),
                range: config.task.range,
            },
            preprocess: config.preprocess.clone(),
            regressor: self.model.plain_regressor(),
            interval,
            encoder: vec![EncoderFile {
                path: ENCODER.into(),
                format: EncoderFormat::Onnx,
                precision: self.options.precision,
            }],
            bins: BinsSection {
                dim: prepared.embeddings.dim,
                bin: config.bin.clone(),
            },
            report,
            provenance: provenance(config, prepared, self.recorded, evidence.summary()),
            files: BTreeMap::new(),
        }
    }

    /// Writes beside the final place, replays the golden vectors there, and
    /// only then lets the bundle have its name.
    fn write(&self, manifest: &Manifest, contents: &Contents) -> Result<(), ExportError> {
        let out = self.options.out;
        let check = |folder: &Path| -> Result<(), ExportError> {
            let pipeline = Pipeline::new(Bundle::open(folder)?, None)?;
            match replay(&pipeline)?.into_iter().find(|replay| !replay.passed) {
                None => Ok(()),
                Some(replay) => Err(ExportError::Parity {
                    path: out.into(),
                    case: replay.case,
                    cosine: replay.cosine,
                }),
            }
        };
        bundle::write(out, manifest.clone(), contents, check)
    }
}

fn provenance(
    config: &Config,
    prepared: &Prepared,
    recorded: &fit::Provenance,
    quantization: String,
) -> Provenance {
    let weights = config.model.init.as_deref().and_then(Path::file_name);
    let teacher = recorded.teacher.as_ref();
    Provenance {
        data: config.data.description.clone(),
        data_digest: recorded.data_digest.clone(),
        text_tower: text_source(config, prepared),
        weights: match weights {
            Some(file) => format!("initialised from {}", file.to_string_lossy()),
            None => format!("random, seed {}", config.train.seed),
        },
        teacher: teacher.map(ToString::to_string).unwrap_or_default(),
        architecture: architecture(config),
        seed: config.train.seed,
        revision: option_env!("NUMCLIP_REVISION").unwrap_or_default().into(),
        trainer: format!("numclip-trainer {}", env!("CARGO_PKG_VERSION")),
        licence: config.export.licence.clone(),
        quantization,
        interval: String::new(),
    }
}

/// Where the bin embeddings come from, and what training changed of them.
fn text_source(config: &Config, prepared: &Prepared) -> String {
    let (source, tune) = (&prepared.embeddings.source, &config.text.tune);
    match tune.is_some() {
        true => format!("{source}; {tune} tuned on the images"),
        false => source.to_string(),
    }
}

fn architecture(config: &Config) -> String {
    let name = serde_json::to_value(config.model.architecture).ok();
    let name = name
        .as_ref()
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    let size = config.preprocess.size;
    match config.model.architecture {
        Architecture::VitTiny => format!("{name}, patch {}, {size} px", config.model.patch()),
        _ => format!("{name}, width {}, {size} px", config.model.width),
    }
}
