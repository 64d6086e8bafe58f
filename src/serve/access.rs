//! Who may come in.
//!
//! With a token: who shows it as a bearer, or has shown it once in the address
//! (`/?token=…`) and got a cookie for it. Without one, which is for this machine
//! alone: requests that call it by a name of this machine, so that no foreign
//! site can reach it through a name of its own that points here.

use std::fmt;
use std::fs;
use std::hint::black_box;
use std::path::Path;

use axum::http::{HeaderMap, HeaderName, Uri, header};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::host::is_this_machine;

/// Fewest characters of a token.
const SHORTEST: usize = 16;
const LONGEST: usize = 256;
/// How long a browser stays logged in, in seconds.
const STAY: u32 = 30 * 24 * 3600;

/// The secret that lets people in. It is not kept itself, only its digests.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
    cookie: String,
}

/// Text that is no token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// Its file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        error: std::io::Error,
    },
    /// It is easily guessed, or cannot be sent.
    #[error(
        "a token is {SHORTEST} to {LONGEST} visible ASCII characters, this one is not; make one with: head -c 24 /dev/urandom | base64"
    )]
    Unfit,
}

/// The rules for coming in.
pub struct Access {
    token: Option<Token>,
    cookie: String,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Enter,
    /// The token was in the address: the browser gets this cookie and is sent
    /// on to this address, which lacks the token.
    LogIn {
        /// Value of `Set-Cookie`.
        cookie: String,
        /// Where to go.
        address: String,
    },
    /// It shows no token, or a wrong one.
    NoToken,
    /// It calls this machine by a foreign name.
    ForeignHost,
}

impl Token {
    /// Reads the token in the file at `path`, without the space around it.
    ///
    /// # Errors
    /// [`TokenError`] when there is none.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = fs::read_to_string(path).map_err(|error| TokenError::File {
            path: path.display().to_string(),
            error,
        })?;
        Self::new(text.trim())
    }

    /// The token `text`.
    ///
    /// # Errors
    /// [`TokenError::Unfit`] when it is too short, too long or not plain.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || !(SHORTEST..=LONGEST).contains(&text.len()) {
            return Err(TokenError::Unfit);
        }
        let cookie = Sha256::digest([b"numclip cookie ", text.as_bytes()].concat());
        Ok(Self {
            digest: Sha256::digest(text).into(),
            cookie: cookie.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// Whether `text` is this token; takes as long if it is not.
    fn is(&self, text: &str) -> bool {
        same(&Sha256::digest(text), &self.digest)
    }

    fn is_cookie(&self, text: &str) -> bool {
        same(text.as_bytes(), self.cookie.as_bytes())
    }
}

/// A token is never printed.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Access {
    /// Rules for a server at `port`: cookies know nothing of ports, so each
    /// server names its own.
    pub fn new(token: Option<Token>, port: u16) -> Self {
        Self {
            token,
            cookie: format!("numclip-{port}"),
        }
    }

    /// What becomes of a request for `uri` with `headers`.
    pub fn judge(&self, uri: &Uri, headers: &HeaderMap) -> Verdict {
        let Some(token) = &self.token else {
            return match text(headers, header::HOST).is_some_and(is_this_machine) {
                true => Verdict::Enter,
                false => Verdict::ForeignHost,
            };
        };
        if let Some((given, address)) = token_of(uri) {
            return match token.is(&given) {
                true => self.log_in(token, address),
                false => Verdict::NoToken,
            };
        }
        let bearer = bearer(headers).is_some_and(|given| token.is(given));
        let cookie = || cookie(headers, &self.cookie).is_some_and(|given| token.is_cookie(given));
        match bearer || cookie() {
            true => Verdict::Enter,
            false => Verdict::NoToken,
        }
    }

    fn log_in(&self, token: &Token, address: String) -> Verdict {
        let cookie = format!(
            "{}={}; Path=/; Max-Age={STAY}; HttpOnly; SameSite=Lax",
            self.cookie, token.cookie
        );
        Verdict::LogIn { cookie, address }
    }
}

/// Compares in a time that does not depend on where the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a
        .iter()
        .zip(b)
        .fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    a.len() == b.len() && difference == 0
}

/// The token in the query of `uri`, and the address without it.
fn token_of(uri: &Uri) -> Option<(String, String)> {
    let parts = || uri.query().unwrap_or_default().split('&');
    let given = parts().find_map(|part| part.strip_prefix("token="))?;
    let given = percent_decode_str(given).decode_utf8_lossy().into_owned();
    let rest = parts().filter(|part| !part.starts_with("token="));
    let rest = rest.collect::<Vec<_>>().join("&");
    // One slash only: two would begin the name of a foreign host.
    let path = format!("/{}", uri.path().trim_start_matches(['/', '\\']));
    let address = match rest.as_str() {
        "" => path,
        rest => format!("{path}?{rest}"),
    };
    Some((given, address))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, given) = text(headers, header::AUTHORIZATION)?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(given.trim())
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "a+good/token+of=24chars!";

    fn judge(token: Option<&str>, uri: &str, headers: &[(HeaderName, &str)]) -> Verdict {
        let access = Access::new(token.map(|text| Token::new(text).unwrap()), 80);
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect();
        access.judge(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn without_a_token_the_name_of_this_machine_is_needed() {
        for (host, verdict) in [
            ("127.0.0.1:8080", Verdict::Enter),
            ("localhost", Verdict::Enter),
            ("LocalHost:1", Verdict::Enter),
            ("[::1]:8080", Verdict::Enter),
            ("127.0.0.2:8080", Verdict::Enter),
            ("128.0.0.1:8080", Verdict::ForeignHost),
            ("evil.example:8080", Verdict::ForeignHost),
            ("127.0.0.1.evil.example", Verdict::ForeignHost),
            ("localhost:80:evil", Verdict::ForeignHost),
            ("", Verdict::ForeignHost),
        ] {
            let host = [(header::HOST, host)];
            assert_eq!(judge(None, "/", &host), verdict, "{host:?}");
        }
        assert_eq!(judge(None, "/", &[]), Verdict::ForeignHost);
    }

    #[test]
    fn a_bearer_comes_in() {
        let with = |value: &str| judge(Some(SECRET), "/x", &[(header::AUTHORIZATION, value)]);
        assert_eq!(with(&format!("Bearer {SECRET}")), Verdict::Enter);
        assert_eq!(with(&format!("bearer  {SECRET} ")), Verdict::Enter);
        for wrong in ["Bearer", "Bearer ", "Basic abc", SECRET, "Bearer a+good"] {
            assert_eq!(with(wrong), Verdict::NoToken, "{wrong}");
        }
        assert_eq!(judge(Some(SECRET), "/x", &[]), Verdict::NoToken);
    }

    #[test]
    fn the_token_in_the_address_gives_a_cookie_and_vanishes() {
        let uri = "/page?a=1&token=a%2Bgood%2Ftoken%2Bof%3D24chars!&b";
        let Verdict::LogIn { cookie, address } = judge(Some(SECRET), uri, &[]) else {
            panic!("not let in");
        };
        assert_eq!(address, "/page?a=1&b");
        assert!(!cookie.contains("good") && cookie.contains("HttpOnly; SameSite"));
        let pair = cookie.split(';').next().unwrap();
        let cookies = [(header::COOKIE, "other=1"), (header::COOKIE, pair)];
        assert_eq!(judge(Some(SECRET), "/", &cookies), Verdict::Enter);
        let forged = [(header::COOKIE, "numclip-80=00")];
        assert_eq!(judge(Some(SECRET), "/", &forged), Verdict::NoToken);
        assert_eq!(
            judge(Some(SECRET), "/?token=no", &cookies),
            Verdict::NoToken
        );
    }

    #[test]
    fn nobody_is_sent_to_a_foreign_host() {
        let uri = format!("//evil.example/?token={SECRET}").replace('+', "%2B");
        match judge(Some(SECRET), &uri, &[]) {
            Verdict::LogIn { address, .. } => assert_eq!(address, "/evil.example/"),
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn weak_tokens_are_refused() {
        for text in ["", "short", "has a space within it", "ümläütümläütümläüt"] {
            assert!(Token::new(text).is_err(), "{text}");
        }
        assert!(!format!("{:?}", Token::new(SECRET)).contains("good"));
    }

    proptest! {
        #[test]
        fn nothing_but_the_token_opens(text in "\\PC{0,40}", value in prop::collection::vec(any::<u8>(), 0..60)) {
            let access = Access::new(Some(Token::new(SECRET).unwrap()), 80);
            let mut headers = HeaderMap::new();
            if let Ok(value) = axum::http::HeaderValue::from_bytes(&value) {
                for name in [header::AUTHORIZATION, header::COOKIE, header::HOST] {
                    headers.insert(name, value.clone());
                }
            }
            if let Ok(uri) = format!("/?token={text}").parse() {
                prop_assert_eq!(access.judge(&uri, &headers), Verdict::NoToken);
            }
        }
    }
}
