//! `numclip flash --with-runtime`: the program ahead of the model.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use numclip::flash::{
    Delivery, Processor, Progress, Reach, RuntimeError, SendError, Site, install_runtime,
};
use numclip::signature::PublicKey;
use sha2::{Digest as _, Sha256};

use super::reach::Session;

/// Says what the machine is, how much of the program is there from an earlier
/// attempt, and which program it has.
const LOOK: &str = r#"uname -m
wc -c < "$1/staging/@SHA256@" 2>/dev/null || echo 0
sha256sum "${1%var/lib/numclip}usr/local/bin/numclip" 2>/dev/null || echo none"#;

/// Takes the rest of the program, and has it install itself.
const TAKE: &str = r#"umask 022
file=$1/staging/@SHA256@
mkdir -p "$1/staging" && cat >> "$file" || exit 1
size=$(wc -c < "$file")
[ "$size" -le @SIZE@ ] || rm -f "$file"
[ "$size" -eq @SIZE@ ] || { echo "error: the connection ended" >&2; exit 75; }
if ! echo "@SHA256@  $file" | sha256sum -c > /dev/null 2>&1; then
  rm -f "$file"
  echo "error: the program was damaged on its way" >&2
  exit 75
fi
chmod 755 "$file"
"$file" store runtime --store "$1" @KEY@
code=$?
rm -f "$file"
exit $code"#;

/// Has the program that is there look after the rest: unit, user, settings.
const REFRESH: &str =
    r#""${1%var/lib/numclip}usr/local/bin/numclip" store runtime --store "$1" @KEY@"#;

/// A program that is to be installed.
pub struct Program {
    bytes: Vec<u8>,
    sha256: String,
    processor: Processor,
    key: Option<PublicKey>,
}

impl Program {
    /// Reads the program at `path`; `key` is the one to trust on new devices.
    ///
    /// # Errors
    /// When it cannot be read, or is no program.
    pub fn read(path: &Path, key: Option<PublicKey>) -> Result<Self> {
        let in_file = || path.display().to_string();
        let bytes = fs::read(path).with_context(in_file)?;
        let processor = Processor::of(&bytes).ok_or(RuntimeError::Foreign);
        let digest = Sha256::digest(&bytes);
        Ok(Self {
            processor: processor.with_context(in_file)?,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            bytes,
            key,
        })
    }

    /// Installs it on the system around the store in a folder.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn place(&self, store: &Path) -> Result<Delivery> {
        let site = Site::of(store);
        Ok(install_runtime(
            store,
            &self.bytes,
            self.key.as_ref(),
            site,
        )?)
    }

    /// Brings it to a device, and goes on where an earlier attempt broke off.
    ///
    /// # Errors
    /// [`SendError`] where another attempt may succeed.
    pub fn send(
        &self,
        reach: &Reach,
        host: &str,
        port: Option<u16>,
        show: &mut dyn FnMut(Progress),
    ) -> Result<Delivery> {
        let script = |text: &str| reach.shell(host, port, &self.filled(text));
        let answer = Session::start(script(LOOK))?.said()?;
        let [machine, there, installed] = answer.lines().collect::<Vec<_>>()[..] else {
            bail!("not a device with a shell: it says {answer:?}");
        };
        self.refuse_other(machine)?;
        if installed.starts_with(&self.sha256) {
            return delivery(&Session::start(script(REFRESH))?.said()?);
        }
        let there: usize = there.trim().parse().unwrap_or(0);
        let rest = self.bytes.get(there..).unwrap_or_default();
        show(Progress::Total(rest.len() as u64));
        let mut session = Session::start(script(TAKE))?;
        let mut input = session.input.take().context("ssh does not listen")?;
        let mut written = Ok(());
        for chunk in rest.chunks(1 << 16) {
            written = input.write_all(chunk);
            if written.is_err() {
                break;
            }
            show(Progress::Sent(chunk.len() as u64));
        }
        drop(input);
        match (session.said(), written) {
            (Ok(words), _) => delivery(&words),
            (Err(error), Ok(())) if !error.to_string().contains("the connection") => Err(error),
            (Err(error), _) => Err(SendError::Connection {
                message: error.to_string(),
                begun: true,
            }
            .into()),
        }
    }

    fn filled(&self, script: &str) -> String {
        // Both lines: the remark may say until when the key is trusted. They
        // hold nothing that ends a quotation.
        let key = self.key.as_ref();
        let key = key.map_or(String::new(), |key| format!("--trust '{key}'"));
        script
            .replace("@SHA256@", &self.sha256)
            .replace("@SIZE@", &self.bytes.len().to_string())
            .replace("@KEY@", &key)
    }

    fn refuse_other(&self, machine: &str) -> Result<(), RuntimeError> {
        match Processor::named(machine) {
            Some(device) if !self.processor.may_run_on(device) => Err(RuntimeError::Processor {
                program: self.processor,
                device: machine.into(),
            }),
            _ => Ok(()),
        }
    }
}

fn delivery(words: &str) -> Result<Delivery> {
    serde_json::from_str(words.trim()).map_err(|_| anyhow!("not an answer of numclip: {words}"))
}
