//! Requests over HTTP, encrypted wherever they leave this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::config::{ConfigBuilder, RedirectAuthHeaders};
use ureq::typestate::AgentScope;

use crate::host::is_this_machine;

type Config = ConfigBuilder<AgentScope>;

/// How long a server may take to be found and to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may pause within an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// Where Linux distributions keep the certificates they trust.
#[cfg(feature = "tls")]
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How servers are reached.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// Speak to other machines without encryption too.
    pub plain_http: bool,
    /// Certificates that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,
}

impl Transport {
    /// `http` or `https` for the server `host[:port]`: without encryption only
    /// on this machine, or when told.
    pub(super) fn scheme(&self, host: &str) -> &'static str {
        match self.plain_http || is_this_machine(host) {
            true => "http",
            false => "https",
        }
    }

    /// A client for addresses of one scheme.
    pub(super) fn agent(&self, scheme: &str) -> Result<Agent, String> {
        let encrypted = scheme == "https";
        let config = Agent::config_builder()
            .timeout_resolve(Some(ANSWER))
            .timeout_connect(Some(ANSWER))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .https_only(encrypted)
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("numclip/", env!("CARGO_PKG_VERSION")));
        let config = match encrypted {
            true => encrypt(config, self.ca.as_deref())?,
            false => config,
        };
        Ok(config.build().new_agent())
    }
}

#[cfg(feature = "tls")]
fn encrypt(config: Config, ca: Option<&Path>) -> Result<Config, String> {
    use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
    let path = ca.unwrap_or(Path::new(CERTIFICATES));
    let name = path.display();
    let pem = std::fs::read(path)
        .map_err(|error| format!("{name}: {error}; give --ca a file of trusted certificates"))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(format!("{name}: no certificates"));
    }
    let roots = RootCerts::from(certificates);
    Ok(config.tls_config(TlsConfig::builder().root_certs(roots).build()))
}

#[cfg(not(feature = "tls"))]
fn encrypt(_: Config, _: Option<&Path>) -> Result<Config, String> {
    Err(
        "this build cannot encrypt; build numclip with --features tls, or give --plain-http on a network you trust"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_without_encryption() {
        let transport = Transport::default();
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert_eq!(transport.scheme(host), "http", "{host}");
        }
        for host in [
            "r.local",
            "10.0.0.1:80",
            "localhost.evil.org",
            "127.0.0.1.evil.org:80",
        ] {
            assert_eq!(transport.scheme(host), "https", "{host}");
        }
        let told = Transport {
            plain_http: true,
            ..transport
        };
        assert_eq!(told.scheme("r.local"), "http");
    }
}
