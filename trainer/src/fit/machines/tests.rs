use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn shares_are_all_batches_in_order(
        start in 0..1000_usize,
        batches in 0..200_usize,
        devices in prop::collection::vec(1..9_usize, 1..6),
    ) {
        let shares = shares(start..start + batches, &devices);
        prop_assert_eq!(shares.len(), devices.len());
        let all: Vec<usize> = shares.iter().cloned().flatten().collect();
        prop_assert_eq!(all, (start..start + batches).collect::<Vec<_>>());
        let total: usize = devices.iter().sum();
        for (share, devices) in shares.iter().zip(&devices) {
            let fair = (batches * devices) as f64 / total as f64;
            prop_assert!((share.len() as f64 - fair).abs() < 1.0, "{share:?} {fair}");
        }
    }

    #[test]
    fn steps_are_all_batches(batches in 0..300_usize, accumulate in 1..20_usize) {
        let steps = Steps { batches, accumulate };
        let all: Vec<usize> = (0..steps.count()).flat_map(|step| steps.of(step)).collect();
        prop_assert_eq!(all, (0..batches).collect::<Vec<_>>());
        prop_assert!((0..steps.count()).all(|step| !steps.of(step).is_empty()));
    }
}
