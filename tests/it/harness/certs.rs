//! An authority that signs certificates, for one test: made by the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

pub struct Authority {
    folder: TempDir,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { folder: TempDir::new().unwrap() };
        let subject = "/CN=the authority of a test";
        authority.openssl("ca", &["-x509", "-subj", subject]);
        authority
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A certificate for these names, such as `DNS:localhost,IP:127.0.0.1`.
    pub fn issue(&self, file: &str, names: &str) -> Certificate {
        let (ca, key) = (self.path("ca.pem"), self.path("ca.key"));
        let names = format!("subjectAltName={names}");
        let subject = format!("/CN={file}");
        self.openssl(
            file,
            &[
                "-x509",
                "-CA",
                ca.to_str().unwrap(),
                "-CAkey",
                key.to_str().unwrap(),
                "-subj",
                &subject,
                "-addext",
                &names,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ],
        );
        Certificate {
            cert: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        }
    }

    fn openssl(&self, file: &str, arguments: &[&str]) {
        let done = Command::new("openssl")
            .args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-keyout"])
            .arg(self.path(&format!("{file}.key")))
            .arg("-out")
            .arg(self.path(&format!("{file}.pem")))
            .args(arguments)
            .output()
            .expect("openssl is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Both files after each other, as some servers want it.
pub fn together(certificate: &Certificate, into: &Path) {
    let mut text = std::fs::read_to_string(&certificate.key).unwrap();
    text.push_str(&std::fs::read_to_string(&certificate.cert).unwrap());
    std::fs::write(into, text).unwrap();
}
