//! SIGHUP: settings and model are read again, checked beside the old ones, and
//! take their place between two frames. What cannot be used is refused, and
//! the old goes on.

use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Error, Result, anyhow, bail};
use numclip::live;
use numclip::pipeline::Pipeline;
use numclip::settings::Settings;
use numclip::sink::{Sink, Surroundings};
use sd_notify::NotifyState;

use super::watch::notify;
use super::{Args, Outlet, Running, address, keeper, load, outlets_of};

/// How long a sink that leaves may take for what it was given.
const FAREWELL: Duration = Duration::from_secs(1);

/// A reload on its way, on a thread of its own: loading a model takes a while,
/// and the pipeline wants looking after.
pub struct Reload(JoinHandle<Result<Next>>);

/// What is to come.
struct Next {
    settings: Settings,
    live: live::Settings,
    pipeline: Arc<Pipeline>,
    /// Sinks that are new, opened.
    new: Vec<(Outlet, Box<dyn Sink>)>,
    /// Sinks that stay.
    kept: Vec<Outlet>,
}

impl Reload {
    /// Begins to read settings and model again.
    pub fn begin(args: &Args, now: &Running) -> Self {
        let mut states = vec![NotifyState::Reloading, NotifyState::Status("reloading")];
        states.extend(NotifyState::monotonic_usec_now());
        notify(&states);
        let (args, around) = (args.clone(), now.around.clone());
        let old = now.settings.clone();
        let outlets = now.outlets.iter().map(|(_, outlet)| outlet.clone());
        let outlets: Vec<Outlet> = outlets.collect();
        Self(thread::spawn(move || {
            prepare(&args, &old, &outlets, around)
        }))
    }

    /// Whether it can be finished without a wait.
    pub fn is_ready(&self) -> bool {
        self.0.is_finished()
    }

    /// Puts what came in place of what was, or says why not.
    pub fn finish(self, running: &mut Running) {
        let next = self
            .0
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the reload broke down")));
        let outcome = match next {
            Ok(next) => running.adopt(next),
            Err(error) => refused(&error),
        };
        (running.around.tell)(outcome.clone());
        notify(&[NotifyState::Ready, NotifyState::Status(&outcome)]);
    }
}

fn refused(error: &Error) -> String {
    format!("reload refused, going on as before: {error:#}")
}

fn prepare(
    args: &Args,
    old: &Settings,
    outlets: &[Outlet],
    mut around: Surroundings,
) -> Result<Next> {
    let settings = args.settings()?;
    address(&settings)?;
    if settings.every_frame() != old.every_frame() {
        bail!("a source that waits and one that does not cannot take turns; start numclip again");
    }
    #[cfg(feature = "http")]
    if settings.http != old.http {
        bail!("http cannot change while it serves; start numclip again");
    }
    let live = settings.live()?;
    let pipeline = Arc::new(load(&settings)?);
    around.bundle = Arc::clone(pipeline.bundle());
    let (kept, new): (Vec<_>, Vec<_>) = outlets_of(&settings)?
        .into_iter()
        .partition(|outlet| outlets.contains(outlet));
    let new: Result<Vec<_>> = new
        .into_iter()
        .map(|outlet| Ok((outlet.clone(), outlet.open(&settings, &around)?)))
        .collect();
    Ok(Next {
        new: new?,
        settings,
        live,
        pipeline,
        kept,
    })
}

impl Running {
    /// Goes on with what has come; says what that is.
    fn adopt(&mut self, next: Next) -> String {
        #[cfg(feature = "http")]
        if let Some((screen, _)) = &self.web {
            screen.renew(Arc::clone(&next.pipeline), next.live.stall);
        }
        self.live.swap(Arc::clone(&next.pipeline), next.live);
        self.exchange_sinks(next.new, &next.kept);
        let (source, pace) = (&next.settings.source.address, next.settings.pace.fps);
        if *source != self.settings.source.address || pace != self.settings.pace.fps {
            self.reopen(&next.settings);
        }
        if next.settings.keep != self.settings.keep {
            self.keeper =
                keeper(&next.settings, &self.live, &self.around.tell).unwrap_or_else(|error| {
                    (self.around.tell)(format!("{error:#}"));
                    None
                });
        }
        let old = describe(&self.pipeline);
        (self.settings, self.pipeline) = (next.settings, next.pipeline);
        self.swaps += 1;
        match describe(&self.pipeline) {
            new if new == old => format!("reloaded; the model is still {new}"),
            new => format!("reloaded: {new} in place of {old}"),
        }
    }

    fn reopen(&self, settings: &Settings) {
        if let Some(address) = settings.source.address.clone() {
            let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
            *source = address.to_string().into();
            self.live.reopen(Arc::new(move || address.open()));
        }
    }

    /// The new sinks begin before those that are gone take their leave.
    fn exchange_sinks(&mut self, new: Vec<(Outlet, Box<dyn Sink>)>, kept: &[Outlet]) {
        let gone = self
            .outlets
            .extract_if(.., |(_, outlet)| !kept.contains(outlet));
        let gone: Vec<u64> = gone.map(|(number, _)| number).collect();
        for (outlet, sink) in new {
            let number = self.hub.add(outlet.to_string(), sink);
            self.outlets.push((number, outlet));
        }
        let hub = Arc::clone(&self.hub);
        thread::spawn(move || {
            for number in gone {
                hub.remove(number, FAREWELL);
            }
        });
    }
}

/// Name, version and identity of a model.
fn describe(pipeline: &Pipeline) -> String {
    let (bundle, model) = (pipeline.bundle(), &pipeline.bundle().manifest().model);
    format!(
        "{} {} ({}…)",
        model.name,
        model.version,
        &bundle.sha256()[..12]
    )
}
