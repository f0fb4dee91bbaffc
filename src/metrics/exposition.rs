//! The forms in which metrics are sent.

use std::fmt;

use prometheus_client::encoding::{prometheus_protobuf, prometheus_text, text};
use prometheus_client::registry::Registry;

/// A form that a scraper may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Prometheus' own text, which all scrapers read.
    Text,
    OpenMetrics,
    /// The messages of Prometheus, with native histograms.
    Protobuf,
}

impl Form {
    /// The one to answer with, by the header `Accept` of a request: the first that is known.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let known = |wanted: &str| {
            let mut parts = wanted.split(';').map(str::trim);
            match parts.next() {
                Some("application/openmetrics-text") => Some(Self::OpenMetrics),
                Some("application/vnd.google.protobuf") => Some(Self::Protobuf),
                Some("text/plain" | "text/*" | "*/*") => Some(Self::Text),
                _ => None,
            }
        };
        accept.split(',').find_map(known).unwrap_or(Self::Text)
    }

    /// What an answer in this form says of itself.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// All metrics of a registry, as they are now.
///
/// # Errors
/// A collector of the registry failed.
pub fn exposition(registry: &Registry, form: Form) -> Result<Vec<u8>, fmt::Error> {
    let mut written = String::new();
    match form {
        Form::Text => prometheus_text::encode(&mut written, registry)?,
        Form::OpenMetrics => text::encode(&mut written, registry)?,
        Form::Protobuf => {
            return prometheus_protobuf::encode_to_vec(registry).map_err(|_| fmt::Error);
        }
    }
    Ok(written.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_known_is_taken() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(Form::accepted(prometheus), Form::OpenMetrics);
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain";
        assert_eq!(Form::accepted(native), Form::Protobuf);
        for text in ["", "text/html, */*", "nothing known", "text/plain"] {
            assert_eq!(Form::accepted(text), Form::Text, "{text}");
        }
    }
}
