//! The pages: one file each, nothing is fetched from elsewhere.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64ct::{Base64, Encoding as _};
use sha2::{Digest as _, Sha256};

/// A page, and what it may do.
pub struct Page {
    html: &'static str,
    policy: HeaderValue,
}

/// The page with picture, value and state.
pub fn dashboard() -> Page {
    Page::new(include_str!("page.html"))
}

/// The page that asks for the token.
pub fn login() -> Page {
    Page::new(include_str!("login.html"))
}

impl Page {
    fn new(html: &'static str) -> Self {
        // Digests and keywords: always a header.
        let policy = HeaderValue::from_str(&policy(html));
        Self {
            html,
            policy: policy.unwrap_or(HeaderValue::from_static("default-src 'none'")),
        }
    }

    /// The page as an answer.
    pub fn response(&self, status: StatusCode) -> Response {
        let headers = [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/html; charset=utf-8"),
            ),
            (header::CONTENT_SECURITY_POLICY, self.policy.clone()),
        ];
        (status, headers, self.html).into_response()
    }
}

/// Lets the script and the style that stand in `html` work, and nothing else.
fn policy(html: &str) -> String {
    let script = digest(html, "<script>", "</script>");
    let style = digest(html, "<style>", "</style>");
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src 'self' data:; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
}

/// The digest of what stands between `open` and `close`, as a policy names it.
fn digest(html: &str, open: &str, close: &str) -> String {
    let inside = html
        .split_once(open)
        .and_then(|(_, rest)| rest.split_once(close));
    match inside {
        Some((inside, _)) => format!(
            "'sha256-{}'",
            Base64::encode_string(&Sha256::digest(inside))
        ),
        None => "'none'".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_bring_all_they_need() {
        for html in [include_str!("page.html"), include_str!("login.html")] {
            assert!(!html.contains("http://") || html.contains("http://www.w3.org/"));
            assert!(!html.contains("https://") && !html.contains("style=\""));
            assert!(html.matches("<style>").count() == 1 && html.matches("<script>").count() <= 1);
        }
    }

    #[test]
    fn the_policy_names_what_stands_in_the_page() {
        // The digest of nothing, from FIPS 180's own test values.
        let empty = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let policy = policy("<style></style><p>");
        assert!(
            policy.contains(&format!("style-src 'sha256-{empty}';")),
            "{policy}"
        );
        assert!(policy.contains("script-src 'none';"), "{policy}");
    }
}
