//! Where to serve.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// An address and a port; a port alone is of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub SocketAddr);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (host, port) = text.rsplit_once(':').unwrap_or(("localhost", text));
        let port = || port.parse().map(|port| SocketAddr::new(here, port));
        let address = match host {
            "localhost" => port().ok(),
            _ => text.parse().ok(),
        };
        let expected = || "expected an address and a port, as in 127.0.0.1:8080".into();
        address.map(Self).ok_or_else(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_this_machine() {
        let place = |text: &str| text.parse::<Place>().map(|place| place.0.to_string());
        for (text, address) in [
            ("8080", "127.0.0.1:8080"),
            ("localhost:80", "127.0.0.1:80"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(place(text).as_deref(), Ok(address));
        }
        for text in ["", ":", "host:80", "127.0.0.1", "1.2.3.4:99999", "::1"] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
