//! How this process reaches nodes: over TLS or not, and as which user. Equal for all connections of a process.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use parking_lot::RwLock;
use shardhost_security::channel::{Security, Token};
use shardhost_security::{Credentials, TlsFiles};
use shardhost_server::config::TlsSettings;

use super::ended::senseless;

/// Longest file with a token, in bytes.
const MAX_TOKEN_BYTES: usize = 1_024;

static SECURITY: RwLock<Option<Security>> = RwLock::new(None);

/// Certificates, in PEM, and the token.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArguments {
    /// The authority of the cluster; with it, nodes are reached over TLS.
    #[arg(long, global = true, env = "SHARDHOST_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The own certificate: of the user, or of the node that is served.
    #[arg(long, global = true, env = "SHARDHOST_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, global = true, env = "SHARDHOST_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// A file with the token of a user, in place of a certificate.
    #[arg(long, global = true, env = "SHARDHOST_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl SecurityArguments {
    /// The files, as far as they are named.
    fn files(&self) -> anyhow::Result<Option<TlsFiles>> {
        let Self { tls_ca, tls_cert, tls_key, .. } = self;
        let own = match (tls_cert.clone(), tls_key.clone()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(senseless("--tls-cert and --tls-key belong together")),
        };
        match (tls_ca.clone(), own) {
            (Some(ca), own) => Ok(Some(TlsFiles { ca, own })),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                Err(senseless("--tls-cert needs --tls-ca, the authority of the cluster"))
            }
        }
    }

    /// Those of a node that is served; `None`: none are named.
    ///
    /// # Errors
    /// Some are named and some are not.
    pub fn of_node(&self) -> anyhow::Result<Option<TlsSettings>> {
        let Some(files) = self.files()? else { return Ok(None) };
        let settings = TlsSettings::of(files);
        let missing = || senseless("a node needs --tls-cert and --tls-key beside --tls-ca");
        settings.ok_or_else(missing).map(Some)
    }

    /// How nodes are reached from now on.
    ///
    /// # Errors
    /// The certificates or the token cannot be used.
    pub fn apply(&self) -> anyhow::Result<()> {
        let credentials = self.files()?.map(Credentials::load).transpose()?;
        let token = self.token_file.as_ref().map(read_token).transpose()?;
        if token.is_some() && credentials.is_none() {
            return Err(senseless(
                "--token-file needs --tls-ca: a token is not sent where others can read it",
            ));
        }
        use_security(Security { credentials, token });
        Ok(())
    }
}

fn read_token(path: &PathBuf) -> anyhow::Result<Token> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))?;
    let token = Token::new(text.trim()).filter(|_| text.len() <= MAX_TOKEN_BYTES);
    token.with_context(|| {
        format!("{shown} holds no token: one line, as `shardhost token make` prints it")
    })
}

/// How nodes are reached from now on.
pub fn use_security(security: Security) {
    *SECURITY.write() = Some(security);
}

/// How nodes are reached.
pub fn security() -> Security {
    SECURITY.read().clone().unwrap_or_default()
}
