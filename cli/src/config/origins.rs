//! Origins of pages, as browsers name them: `https://example.com`, `http://localhost:8080`.

use std::str::FromStr;

/// One or more of them, with commas between them, or `*`. They are compared as they stand: what no browser ever sends is
/// refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origins(pub(crate) Vec<String>);

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let origins = text.split(',').map(str::trim).map(|origin| {
            let is_fine = origin == "*" || is_origin(origin);
            is_fine.then(|| origin.to_owned()).ok_or_else(|| {
                format!(
                    "{origin:?} is no origin: write it as a browser does, like https://example.com or \
                     http://localhost:8080, in small letters and with nothing behind it"
                )
            })
        });
        Ok(Self(origins.collect::<Result<_, _>>()?))
    }
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let is_scheme = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.');
    // A host that is an IPv6 address stands in brackets.
    let is_host = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_' | ':' | '[' | ']')
    };
    !scheme.is_empty() && !host.is_empty() && scheme.chars().all(is_scheme) && host.chars().all(is_host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_taken_as_browsers_send_them_and_nothing_else_is() {
        let both = "https://example.com, http://[::1]:8080".parse();
        assert_eq!(both, Ok(Origins(vec!["https://example.com".into(), "http://[::1]:8080".into()])));
        assert_eq!("*".parse(), Ok(Origins(vec!["*".into()])));
        for text in [
            "",
            "example.com",
            "https://",
            "https://example.com/",
            "https://example.com/path",
            "https://Example.com",
            "https://example.com?x",
            "https://*.example.com",
            "https://a b",
            "https://example.com,",
            "null",
        ] {
            assert!(text.parse::<Origins>().is_err(), "{text:?}");
        }
    }
}
