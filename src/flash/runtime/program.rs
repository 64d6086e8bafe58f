//! What an executable file runs on, read off its ELF header.

use std::fmt;

/// `e_machine` of the ELF header, by the names that `uname -m` gives.
const MACHINES: [(u16, &[&str]); 5] = [
    (3, &["i686", "i586", "i386"]),
    (40, &["armv7l", "armv6l", "armv8l", "arm"]),
    (62, &["x86_64", "amd64"]),
    (183, &["aarch64", "arm64"]),
    (243, &["riscv64"]),
];

/// The processor that a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor(u16);

impl Processor {
    /// Reads the header of an executable file for Linux; `None` when it is
    /// none, or cut short.
    pub fn of(program: &[u8]) -> Option<Self> {
        let header = program.get(..20)?;
        let (magic, is_little) = (&header[..4], header[5] == 1);
        let kind = u16::from_le_bytes([header[16], header[17]]);
        // 2 is a fixed program, 3 one that can lie anywhere.
        if magic != b"\x7fELF" || !is_little || !matches!(kind, 2 | 3) {
            return None;
        }
        Some(Self(u16::from_le_bytes([header[18], header[19]])))
    }

    /// The processor of a machine, by what `uname -m` says there.
    pub fn named(name: &str) -> Option<Self> {
        let found = MACHINES.iter().find(|(_, names)| names.contains(&name));
        found.map(|(number, _)| Self(*number))
    }

    /// Whether a machine with this processor may run the program: its own
    /// kind, or the 32-bit one that it runs as well on some systems.
    pub fn may_run_on(self, device: Self) -> bool {
        self == device || matches!((self.0, device.0), (3, 62) | (40, 183))
    }

    /// That of this machine.
    pub fn here() -> Option<Self> {
        Self::named(match std::env::consts::ARCH {
            "x86" => "i686",
            name => name,
        })
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = MACHINES.iter().find(|(number, _)| *number == self.0);
        match found {
            Some((_, names)) => f.write_str(names[0]),
            None => write!(f, "processor {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_for_this_machine() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(Processor::of(&program).is_some());
        assert_eq!(Processor::of(&program), Processor::here());
    }

    #[test]
    fn other_files_are_for_none() {
        let mut header = [0; 20];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (header[16], header[18]) = (3, 183);
        assert_eq!(Processor::of(&header).unwrap().to_string(), "aarch64");
        assert_eq!(Processor::of(&header), Processor::named("arm64"));
        for length in 0..header.len() {
            assert_eq!(Processor::of(&header[..length]), None);
        }
        // An object file is not a program, a script neither.
        header[16] = 1;
        assert_eq!(Processor::of(&header), None);
        assert_eq!(Processor::of(b"#!/bin/sh\nexec sleep 1\n"), None);
        assert_eq!(Processor::named("sparc"), None);
    }
}
