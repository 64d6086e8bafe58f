//! What Home Assistant is told: which entities there are, and where their
//! values stand.
//!
//! Form of the messages: Home Assistant's documentation, "MQTT discovery".

use serde_json::{Map, Value, json};

use super::Topics;
use super::post::Message;
use crate::bundle::{Bundle, Manifest};
use crate::status::Status;

/// One entity.
struct Entity {
    /// Kind: `sensor` or `binary_sensor`.
    kind: &'static str,
    /// Its name within the device, in topics and identities.
    key: &'static str,
    /// Its name for people.
    name: String,
    /// Whether its value stands in the state, or in the health.
    of_state: bool,
    /// Where in the message.
    value: &'static str,
    /// What else is known of it.
    more: Value,
}

/// The messages that begin a connection: all entities, unless `root` is empty,
/// and that we are online.
pub fn greeting(root: &str, topics: &Topics, bundle: &Bundle) -> Vec<Message> {
    let manifest = bundle.manifest();
    let entities = match root {
        "" => Vec::new(),
        _ => entities(manifest),
    };
    entities
        .iter()
        .map(|entity| Message {
            topic: format!("{root}/{}/{}/{}/config", entity.kind, topics.id, entity.key).into(),
            payload: entity.config(topics, manifest).to_string().into(),
            retain: true,
        })
        .chain([topics.status_message("online")])
        .collect()
}

/// The health as a message.
pub fn health(status: &Status) -> String {
    let lost = status
        .sinks
        .iter()
        .map(|sink| sink.dropped + sink.failed)
        .sum::<u64>();
    let counts = &status.counts;
    json!({
        "fps": (10.0 * status.fps).round() / 10.0,
        "uptime": status.uptime.round(),
        "frames": counts.captured,
        "dropped": counts.dropped,
        "unusable": counts.unusable,
        "reconnects": counts.reconnects,
        "lost": lost,
        "temperature": status.device.temperature,
        "throttled": status.device.throttled,
        "memory": status.device.memory,
        "model": status.model,
        "version": status.version,
    })
    .to_string()
}

fn entities(manifest: &Manifest) -> Vec<Entity> {
    let task = &manifest.task;
    let quantity = json!({"unit_of_measurement": task.unit, "state_class": "measurement"});
    let state = |key, name: &str, value, more| Entity {
        kind: "sensor",
        key,
        name: name.into(),
        of_state: true,
        value,
        more,
    };
    let labels: Vec<&str> = manifest
        .bins
        .bin
        .iter()
        .map(|bin| bin.label.as_str())
        .collect();
    let mut entities = vec![
        state("value", &task.name, "value_json.value", quantity.clone()),
        state(
            "bin",
            "bin",
            "value_json.bin.label",
            json!({"device_class": "enum", "options": labels}),
        ),
        state(
            "confidence",
            "confidence",
            "(100 * value_json.bin.probability) | round(1)",
            json!({"unit_of_measurement": "%", "state_class": "measurement"}),
        ),
    ];
    if manifest.interval.is_some() {
        entities.extend([
            state(
                "low",
                "lower end",
                "value_json.interval[0]",
                quantity.clone(),
            ),
            state("high", "upper end", "value_json.interval[1]", quantity),
        ]);
    }
    entities.extend(diagnostics());
    entities
}

fn diagnostics() -> [Entity; 6] {
    let health = |kind, key, value, more| Entity {
        kind,
        key,
        name: String::from(key).replace('_', " "),
        of_state: false,
        value,
        more,
    };
    [
        health(
            "sensor",
            "estimates_per_second",
            "value_json.fps",
            json!({"unit_of_measurement": "1/s", "state_class": "measurement"}),
        ),
        health(
            "sensor",
            "dropped_frames",
            "value_json.dropped",
            json!({"state_class": "total_increasing"}),
        ),
        health(
            "sensor",
            "lost_estimates",
            "value_json.lost",
            json!({"state_class": "total_increasing"}),
        ),
        health(
            "sensor",
            "temperature",
            "value_json.temperature",
            json!({
                "device_class": "temperature",
                "unit_of_measurement": "°C",
                "state_class": "measurement",
            }),
        ),
        health(
            "binary_sensor",
            "throttled",
            "'ON' if value_json.throttled else 'OFF'",
            json!({"device_class": "problem"}),
        ),
        health("sensor", "model", "value_json.model.version", json!({})),
    ]
}

impl Entity {
    fn config(&self, topics: &Topics, manifest: &Manifest) -> Value {
        let identity = format!("{}_{}", topics.id, self.key);
        let topic = if self.of_state {
            &topics.state
        } else {
            &topics.health
        };
        let mut config = Map::from_iter([
            ("name".into(), json!(self.name)),
            ("unique_id".into(), json!(identity)),
            ("object_id".into(), json!(identity)),
            ("state_topic".into(), json!(**topic)),
            (
                "value_template".into(),
                json!(format!("{{{{ {} }}}}", self.value)),
            ),
            ("availability_topic".into(), json!(*topics.status)),
            (
                "device".into(),
                json!({
                    "identifiers": [topics.id],
                    "name": topics.id,
                    "manufacturer": "numclip",
                    "model": manifest.model.name,
                    "sw_version": env!("CARGO_PKG_VERSION"),
                }),
            ),
        ]);
        if !self.of_state {
            config.insert("entity_category".into(), json!("diagnostic"));
        }
        if let Value::Object(more) = &self.more {
            // An empty unit is not one to Home Assistant.
            let known = more.iter().filter(|(_, value)| **value != json!(""));
            config.extend(known.map(|(key, value)| (key.clone(), value.clone())));
        }
        Value::Object(config)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::super::samples::answer;
    use super::super::MqttSettings;
    use super::*;

    #[test]
    fn every_entity_says_what_home_assistant_asks_for() {
        let mut settings = MqttSettings::new("mqtt://broker/plant");
        settings.id = Some("cam1".into());
        let topics = Topics::new(&settings).unwrap();
        let messages = greeting("homeassistant", &topics, &answer(0, 1.0).reading.bundle);
        let (online, entities) = messages.split_last().unwrap();
        assert_eq!(
            (&*online.topic, &*online.payload),
            ("plant/status", "online")
        );
        let mut identities = BTreeSet::new();
        for message in entities {
            let config: Value = serde_json::from_str(&message.payload).unwrap();
            assert!(message.retain && config["availability_topic"] == "plant/status");
            assert!(
                config["state_topic"]
                    .as_str()
                    .unwrap()
                    .starts_with("plant/")
            );
            assert!(identities.insert(config["unique_id"].to_string()));
        }
        assert_eq!(identities.len(), 11);
        let value: Value = serde_json::from_str(&entities[0].payload).unwrap();
        assert_eq!(
            &*entities[0].topic,
            "homeassistant/sensor/cam1/value/config"
        );
        assert_eq!(value["unit_of_measurement"], "%");
        assert_eq!(value["value_template"], "{{ value_json.value }}");
        assert_eq!(
            greeting("", &topics, &answer(0, 1.0).reading.bundle).len(),
            1
        );
    }

    #[test]
    fn the_values_stand_where_the_entities_look() {
        let state: Value = serde_json::from_str(&answer(0, 1.0).to_json()).unwrap();
        let health: Value = serde_json::from_str(&health(&Status::default())).unwrap();
        for path in [
            "/value",
            "/bin/label",
            "/bin/probability",
            "/interval/0",
            "/interval/1",
        ] {
            assert!(state.pointer(path).is_some(), "{path}");
        }
        for path in [
            "/fps",
            "/dropped",
            "/lost",
            "/temperature",
            "/throttled",
            "/model/version",
        ] {
            assert!(health.pointer(path).is_some(), "{path}");
        }
    }
}
