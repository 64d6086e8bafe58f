//! The agent on a device: hears what is to be served, brings it about, tells.

mod memory;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rumqttc::{LastWill, QoS};
use thiserror::Error;

use super::message::{Heard, OFFLINE, ONLINE, Order, Phase, Report, Topics};
use super::origin::Place;
use super::policy::{Ending, Held, Step, Trial, begin, conclude, decide, phase};
use super::registry::Access;
use crate::flash::{self, Allow, Delivery, Device, DeviceError, Folder, Health, Status};
use crate::sink::mqtt::MqttSettings;
use crate::sink::mqtt::link::{Ear, Link};
use crate::sink::mqtt::post::{Message, Post};
use memory::Memory;

/// How often a device tells how it is, at least.
const TELL: Duration = Duration::from_secs(60);
/// The longest time between two looks at what is to be done.
const TURN: Duration = Duration::from_secs(1);
/// How long the service must have been well after an update in whose midst
/// the device stopped.
const PROOF: Duration = Duration::from_secs(60);
/// How long the last report may take at the end.
const GRACE: Duration = Duration::from_millis(600);

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Folder of the models.
    pub store: PathBuf,
    /// Name of the device, nobody else's.
    pub id: String,
    /// What the device is, by name.
    pub labels: BTreeMap<String, String>,
    /// Where orders come from and reports go.
    pub broker: Option<MqttSettings>,
    /// The place that is looked at instead of waiting for orders.
    pub watch: Option<Place>,
    /// How often it is looked at.
    pub every: Duration,
    /// How registries and servers are reached.
    pub access: Access,
    /// What an order may ask for.
    pub allow: Allow,
}

/// Why an agent does not start.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The store cannot be.
    #[error(transparent)]
    Store(#[from] DeviceError),
}

/// A device's agent.
pub struct Agent {
    settings: AgentSettings,
    memory: Memory,
    broker: Option<Broker>,
    inbox: Arc<Inbox>,
    order: Option<Order>,
    look_due: Instant,
    /// Looks in a row that failed.
    blind: u32,
    started: Instant,
    told: Option<Report>,
    tell_due: Instant,
    /// Why the place cannot be looked at.
    fault: Option<String>,
}

struct Broker {
    link: Link,
    topics: Topics,
}

/// The latest order that came, until it is taken out.
#[derive(Default)]
struct Inbox {
    order: Mutex<Option<Option<Order>>>,
    changed: Condvar,
}

impl Agent {
    /// Begins to connect; the first [`turn`](Self::turn) does the first work.
    ///
    /// # Errors
    /// [`AgentError`]. A broker or a registry that is away is no error.
    pub fn start(settings: AgentSettings) -> Result<Self, AgentError> {
        // The store is made, and what is wrong with it shows at once.
        drop(Device::open(&settings.store)?.trust(None)?);
        let inbox = Arc::<Inbox>::default();
        let broker = settings.broker.as_ref();
        let broker = broker.map(|broker| Broker::start(broker, &settings, &inbox));
        let now = Instant::now();
        Ok(Self {
            memory: Memory::read(&settings.store),
            broker: broker.transpose().map_err(AgentError::Settings)?,
            inbox,
            order: None,
            look_due: now,
            blind: 0,
            started: now,
            told: None,
            tell_due: now,
            fault: None,
            settings,
        })
    }

    /// Does what is to be done now. `tell` gets the report where it is due;
    /// `alive` hears of everything that moves on, so that work which takes long
    /// can be told from work that hangs.
    pub fn turn(&mut self, tell: &mut dyn FnMut(&Report), alive: &dyn Fn()) {
        alive();
        self.look();
        if let Some(order) = self.inbox.lock().take() {
            self.order = order;
        }
        let step = self.step();
        if matches!(step, Step::Install | Step::GoBack) {
            self.tell(Phase::Updating, tell);
            self.carry_out(step, alive);
        } else if step == Step::Rest && self.is_proved() {
            self.memory.keep(None);
        }
        self.tell(phase(self.step()), tell);
    }

    /// Waits until something may have changed, no longer than a second.
    pub fn rest(&self) {
        let order = self.inbox.lock();
        if order.is_none() {
            // What woke us does not matter.
            drop(self.inbox.changed.wait_timeout(order, TURN));
        }
    }

    /// Says farewell.
    pub fn end(self) {
        if let Some(broker) = self.broker {
            let topic = broker.topics.presence(&self.settings.id);
            broker.link.leave(&retained(topic, OFFLINE.into()), GRACE);
        }
    }

    fn look(&mut self) {
        let Some(place) = &self.settings.watch else {
            return;
        };
        if Instant::now() < self.look_due {
            return;
        }
        let every = self.settings.every;
        let wait = match place.order(&self.settings.access) {
            Ok(order) => {
                (self.order, self.fault, self.blind) = (Some(order), None, 0);
                every
            }
            Err(error) => {
                self.fault = Some(error.to_string());
                self.blind = self.blind.saturating_add(1);
                every.min(Duration::from_secs(2) * 2_u32.pow(self.blind.min(9)))
            }
        };
        self.look_due = Instant::now() + wait.mul_f64(0.5 + chance());
    }

    fn step(&self) -> Step {
        decide(
            self.order.as_ref(),
            &self.held(),
            self.memory.trial.as_ref(),
            now(),
        )
    }

    fn held(&self) -> Held {
        let state = flash::state(&Folder::new(&self.settings.store)).unwrap_or_default();
        // The service is only asked where the answer matters.
        let health = self
            .is_unproved()
            .then(|| flash::status(&self.settings.store).ok());
        let failing = |status: Status| status.health == Health::Failing;
        Held {
            serving: state.serving,
            previous: state.previous,
            failing: health.flatten().is_some_and(failing),
        }
    }

    /// Whether the device stopped during an update.
    fn is_unproved(&self) -> bool {
        self.memory.trial.as_ref().is_some_and(|trial| trial.begun)
    }

    /// Whether the service has been well for long enough all the same.
    fn is_proved(&self) -> bool {
        self.is_unproved() && self.order.is_some() && self.started.elapsed() >= PROOF
    }

    fn carry_out(&mut self, step: Step, alive: &dyn Fn()) {
        let Some(order) = self.order.clone() else {
            return;
        };
        let trial = begin(&order, self.memory.trial.take());
        self.memory.keep(Some(trial.clone()));
        let ending = match step {
            Step::GoBack => self.go_back(&order, alive),
            _ => self.install(&order, alive),
        };
        self.memory.keep(conclude(trial, ending, now(), chance()));
    }

    fn install(&self, order: &Order, alive: &dyn Fn()) -> Ending {
        let Some(package) = &order.package else {
            let message = "the store no longer has this bundle, and the order names no package";
            return Ending::Refused(message.into());
        };
        let place: Place = match package.parse() {
            Ok(place) => place,
            Err(error) => return Ending::Refused(format!("order: package: {error}")),
        };
        let settings = &self.settings;
        let installed = match Device::open(&settings.store) {
            Ok(mut device) => place.install(
                &order.sha256,
                &mut device,
                &settings.access,
                settings.allow,
                alive,
            ),
            Err(error) => Err(error.into()),
        };
        match installed {
            Ok(Delivery::Installed | Delivery::AlreadyThere) => Ending::Done,
            Err(error) if error.may_be_repeated() => Ending::Interrupted(error.to_string()),
            Err(error) => Ending::Refused(error.to_string()),
        }
    }

    fn go_back(&self, order: &Order, alive: &dyn Fn()) -> Ending {
        let device = Device::open(&self.settings.store);
        let serves = |state: crate::bundle::State| state.serving.as_ref() == Some(&order.sha256);
        match device.and_then(|mut device| device.rollback(&mut |_| alive())) {
            Ok(()) => match flash::state(&Folder::new(&self.settings.store)).map(serves) {
                Ok(true) => Ending::Done,
                _ => Ending::Refused(
                    "the service was not well; the model before it serves again".into(),
                ),
            },
            Err(error @ DeviceError::Busy { .. }) => Ending::Interrupted(error.to_string()),
            Err(error) => Ending::Refused(error.to_string()),
        }
    }

    fn tell(&mut self, phase: Phase, tell: &mut dyn FnMut(&Report)) {
        let due = Instant::now() >= self.tell_due;
        let known = self.told.as_ref();
        let is_ours = |trial: &&Trial| Some(&trial.order) == self.order.as_ref();
        let trial = self.memory.trial.as_ref().filter(is_ours);
        let fault = trial.and_then(|trial| trial.fault.clone());
        let fault = fault.or_else(|| self.fault.clone());
        let is_news = known.is_none_or(|told| {
            (told.phase, &told.order, &told.fault) != (phase, &self.order, &fault)
        });
        if !due && !is_news {
            return;
        }
        self.tell_due = Instant::now() + TELL;
        let report = self.report(phase, fault);
        if let (Some(broker), Ok(text)) = (&self.broker, serde_json::to_string(&report)) {
            let topic = broker.topics.report(&self.settings.id);
            broker.link.with(|post| post.state(retained(topic, text)));
        }
        // Heat and uptime are for the broker: what is printed is what happens.
        if is_news {
            tell(&report);
        }
        self.told = Some(report);
    }

    fn report(&self, phase: Phase, fault: Option<String>) -> Report {
        Report {
            id: self.settings.id.clone(),
            labels: self.settings.labels.clone(),
            phase,
            order: self.order.clone(),
            fault,
            status: flash::status(&self.settings.store).unwrap_or_else(|_| Status::unknown()),
        }
    }
}

impl Broker {
    fn start(
        settings: &MqttSettings,
        agent: &AgentSettings,
        inbox: &Arc<Inbox>,
    ) -> Result<Self, String> {
        settings.check()?;
        let topics = Topics::new(settings.prefix());
        let presence = topics.presence(&agent.id);
        let mut options = settings.connection(&format!("numclip-agent-{}", agent.id))?;
        options.set_last_will(LastWill::new(&presence, OFFLINE, QoS::AtLeastOnce, true));
        let mut post = Post::new(0);
        post.greet(vec![retained(presence, ONLINE.into())]);
        // Where a place is watched, orders are not heard.
        let ear = agent.watch.is_none().then(|| {
            let (inbox, topics) = (Arc::clone(inbox), topics.clone());
            Ear {
                topics: vec![topics.order(&agent.id)],
                hear: Box::new(move |topic, payload| {
                    if let Some((_, Heard::Order(order))) = topics.read(topic, payload) {
                        *inbox.lock() = Some(order);
                        inbox.changed.notify_all();
                    }
                }),
            }
        });
        Ok(Self {
            link: Link::start_with(options, post, ear),
            topics,
        })
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Option<Option<Order>>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn retained(topic: String, payload: String) -> Message {
    Message {
        topic: topic.into(),
        payload: payload.into(),
        retain: true,
    }
}

/// Unix time in seconds.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A random number from 0 to 1, so that devices do not all come at once.
fn chance() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}
