//! Settings of a change that is on by default: `false` in a file switches it off.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

pub(super) fn serialize<T, S>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
where
    T: Serialize,
    S: Serializer,
{
    match value {
        Some(settings) => settings.serialize(serializer),
        None => serializer.serialize_bool(false),
    }
}

pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_any(Switch(PhantomData))
}

struct Switch<T>(PhantomData<T>);

impl<'de, T: Default + Deserialize<'de>> Visitor<'de> for Switch<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a table of settings, true or false")
    }

    fn visit_bool<E>(self, on: bool) -> Result<Option<T>, E> {
        Ok(on.then(T::default))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Augment, Crop};

    fn read(text: &str) -> Result<Augment, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_change_may_be_switched_off_and_stays_off_when_written() {
        assert_eq!(read("").unwrap().crop, Some(Crop::default()));
        assert_eq!(read("crop = true").unwrap().crop, Some(Crop::default()));
        let off = read("crop = false").unwrap();
        assert_eq!(off.crop, None);
        assert_eq!(read(&toml::to_string(&off).unwrap()).unwrap(), off);
        let some = read("crop = { scale = [0.8, 1.0] }").unwrap();
        assert_eq!(some.crop.unwrap().scale, [0.8, 1.0]);
        assert_eq!(read(&toml::to_string(&some).unwrap()).unwrap(), some);
    }

    #[test]
    fn what_is_no_setting_is_named() {
        let error = read("crop = 3").unwrap_err();
        assert!(error.contains("true or false"), "{error}");
        let error = read("crop = { size = 3 }").unwrap_err();
        assert!(error.contains("unknown field `size`"), "{error}");
    }
}
