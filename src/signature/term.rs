//! When a signature was made and how long it holds.

use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{PublicKey, SignatureError};

/// How far the clocks of a signer and of a device may be apart.
pub const TOLERANCE: SignedDuration = SignedDuration::from_hours(24);

/// When a package was signed, and until when the signature holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The signer's clock.
    pub signed: Timestamp,
    /// The signature holds no longer than this, if it ends.
    pub expires: Option<Timestamp>,
}

impl Term {
    /// The term that `words` of a trusted comment state; they state both
    /// times, or the first.
    pub(super) fn parse(words: &[&str]) -> Option<Self> {
        let (signed, expires) = match *words {
            ["signed", signed] => (signed, None),
            ["signed", signed, "expires", expires] => (signed, Some(time(expires)?)),
            _ => return None,
        };
        Some(Self {
            signed: time(signed)?,
            expires,
        })
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "signed {:.0}", self.signed)?;
        match self.expires {
            Some(expires) => write!(f, " expires {expires:.0}"),
            None => Ok(()),
        }
    }
}

/// A time as `2027-01-31T12:00:00Z`, or a day as `2027-01-31`, which begins in
/// UTC.
pub fn time(text: &str) -> Option<Timestamp> {
    let day = || {
        let day = text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC);
        day.ok().map(|day| day.timestamp())
    };
    text.parse().ok().or_else(day)
}

/// Holds the times of a key, and of what it signed, against each other and
/// against the clock; a clock that says nothing refuses nothing.
pub(super) fn check(
    key: &PublicKey,
    term: Option<Term>,
    now: Option<Timestamp>,
) -> Result<(), SignatureError> {
    let (id, ends) = (key.id(), key.expires());
    let signed = term.map(|term| term.signed);
    if let Some((signed, expired)) = signed.zip(ends).filter(|(signed, ends)| signed > ends) {
        return Err(SignatureError::SignedLate {
            id,
            signed,
            expired,
        });
    }
    let Some(now) = now else {
        return Ok(());
    };
    if let Some(signed) = signed.filter(|&signed| signed.duration_since(now) > TOLERANCE) {
        return Err(SignatureError::Clock { now, signed });
    }
    if let Some(expired) = ends.filter(|&ends| now > ends) {
        return Err(SignatureError::KeyExpired { id, expired, now });
    }
    match term.and_then(|term| term.expires) {
        Some(expired) if now > expired => Err(SignatureError::Expired { expired, now }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::SecretKey;

    fn at(text: &str) -> Timestamp {
        time(text).unwrap()
    }

    #[test]
    fn terms_read_back_and_nothing_else_is_one() {
        let signed = at("2027-03-01T10:00:00Z");
        for expires in [None, Some(at("2028-03-01"))] {
            let term = Term { signed, expires };
            let text = term.to_string();
            let words: Vec<&str> = text.split(' ').collect();
            assert_eq!(Term::parse(&words), Some(term), "{text}");
        }
        for text in [
            "",
            "signed",
            "signed yesterday",
            "expires 2027-01-01",
            "signed 2027-01-01 expires never",
            "signed 2027-01-01 expires 2028-01-01 expires 2029-01-01",
        ] {
            let words: Vec<&str> = text.split(' ').collect();
            assert_eq!(Term::parse(&words), None, "{text}");
        }
    }

    #[test]
    fn each_time_is_held_against_the_clock() {
        let key = SecretKey::generate().unwrap().public();
        let key = key.until(Some(at("2028-01-01")));
        let term = Term {
            signed: at("2027-03-01T10:00:00Z"),
            expires: Some(at("2027-06-01")),
        };
        let refusal = |now: &str, term| {
            let refused = check(&key, term, Some(at(now)));
            refused.err().map(|error| error.to_string())
        };
        let of = |now: &str| refusal(now, Some(term)).unwrap_or_default();
        // A clock may be behind the signer's by the tolerance, no more.
        assert_eq!(of("2027-02-28T10:00:00Z"), "");
        assert!(of("2027-02-28T09:59:59Z").contains("set the clock"));
        let epoch = of("1970-01-01T00:00:12Z");
        assert!(epoch.contains("1970-01-01T00:00:12Z"), "{epoch}");
        assert!(epoch.contains("2027-03-01T10:00:00Z"), "{epoch}");
        assert_eq!(of("2027-06-01"), "");
        let expired = of("2027-06-01T00:00:01Z");
        assert!(expired.contains("2027-06-01T00:00:00Z"), "{expired}");
        // The key ends later, also for signatures without a term.
        assert_eq!(refusal("2027-12-31", None), None);
        let ended = refusal("2028-01-01T00:00:01Z", None).unwrap();
        assert!(ended.contains(&key.id().to_string()), "{ended}");
        // What a key signs after its end needs no clock to be refused.
        let late = Term {
            signed: at("2028-02-01"),
            expires: None,
        };
        let refused = check(&key, Some(late), None).unwrap_err();
        assert!(matches!(refused, SignatureError::SignedLate { .. }));
        check(&key, Some(term), None).unwrap();
    }
}
