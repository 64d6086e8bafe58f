//! A program in place of another, so that one of them is always there whole.

use super::super::disk::Disk;
use super::super::store::{StoreError, at, remove, write_file};

/// The program that runs.
pub const CURRENT: &str = "numclip";
/// The one before it, kept to go back to.
pub const BEFORE: &str = "numclip.before";
/// One on its way.
pub const NEXT: &str = ".numclip.new";

/// Puts `program` in place once `check` has proved it under the name [`NEXT`].
/// Power may go at any step.
///
/// # Errors
/// [`StoreError`]; the program that was there still is.
pub fn replace(
    disk: &mut dyn Disk,
    program: &[u8],
    check: &mut dyn FnMut() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    write_file(disk, NEXT, program)?;
    disk.allow_execution(NEXT).map_err(at(NEXT))?;
    disk.sync(NEXT).map_err(at(NEXT))?;
    if let Err(refused) = check() {
        remove(disk, NEXT)?;
        return Err(refused);
    }
    if disk.len(CURRENT).map_err(at(CURRENT))?.is_some() {
        remove(disk, BEFORE)?;
        disk.link(CURRENT, BEFORE).map_err(at(BEFORE))?;
    }
    disk.rename(NEXT, CURRENT).map_err(at(CURRENT))?;
    disk.sync_folder("").map_err(at(CURRENT))
}

/// Puts the program before in place again. `false` when there is none.
///
/// # Errors
/// [`StoreError`].
pub fn restore(disk: &mut dyn Disk) -> Result<bool, StoreError> {
    if disk.len(BEFORE).map_err(at(BEFORE))?.is_none() {
        return Ok(false);
    }
    disk.rename(BEFORE, CURRENT).map_err(at(CURRENT))?;
    disk.sync_folder("").map_err(at(CURRENT))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::super::simulated::{Fate, SimulatedDisk};
    use super::*;

    const PROGRAMS: [&[u8]; 3] = [&[1; 100], &[2; 130], &[3; 90]];

    fn install(disk: &mut SimulatedDisk, program: &[u8]) -> Result<(), StoreError> {
        replace(disk, program, &mut || Ok(()))
    }

    /// A medium with two programs, the second in place, all of it certain.
    fn prepared() -> SimulatedDisk {
        let mut disk = SimulatedDisk::default();
        for program in &PROGRAMS[..2] {
            install(&mut disk, program).unwrap();
        }
        disk.powered_again(|_| Fate::Kept)
    }

    #[test]
    fn the_one_before_comes_back_once() {
        let mut disk = prepared();
        assert!(restore(&mut disk).unwrap());
        assert_eq!(disk.read(CURRENT).unwrap(), PROGRAMS[0]);
        assert!(!restore(&mut disk).unwrap());
        assert_eq!(disk.read(CURRENT).unwrap(), PROGRAMS[0]);
    }

    #[test]
    fn what_fails_its_check_leaves_no_trace() {
        let mut disk = prepared();
        let mut refuse = || Err(StoreError::Check("no".into()));
        assert!(replace(&mut disk, PROGRAMS[2], &mut refuse).is_err());
        assert_eq!(disk.list("").unwrap(), [CURRENT, BEFORE]);
        assert_eq!(disk.read(CURRENT).unwrap(), PROGRAMS[1]);
    }

    #[test]
    fn power_may_go_at_any_step() {
        let mut whole = prepared();
        install(&mut whole, PROGRAMS[2]).unwrap();
        for step in 0..whole.steps() {
            let mut cut = prepared();
            cut.cut_at(step);
            assert!(install(&mut cut, PROGRAMS[2]).is_err());
            let count = cut.pending();
            for subset in 0..1_usize << count {
                let fate = |change: usize| match subset >> change & 1 {
                    0 => Fate::Lost,
                    _ => Fate::Kept,
                };
                let mut powered = cut.powered_again(fate);
                let there = powered.read(CURRENT).unwrap();
                assert!(PROGRAMS[1..].contains(&&there[..]), "step {step}");
                install(&mut powered, PROGRAMS[2]).unwrap();
                assert_eq!(powered.read(CURRENT).unwrap(), PROGRAMS[2]);
            }
        }
    }
}
