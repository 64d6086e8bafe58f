//! Exponential and its kin, without branches. Their errors are tested below.

/// Below this, `e^x` is no normal number and taken as that of this.
const LEAST: f32 = -87.0;
const LARGEST: f32 = 88.0;
/// The middle of the floats that lie one apart.
const BINADE: f32 = 1.5 * (1 << 23) as f32;
/// ln 2 in two parts, the first of few bits (Cody & Waite, 1980).
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` to 3·10⁻⁷ of its value, for `x` from −87 to 88; saturates beyond.
///
/// `x = n·ln 2 + r`; a polynomial gives `e^r`, the exponent bits `2^n`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(LEAST, LARGEST);
    // The low bits of this float are n.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, BINADE);
    let n = shifted - BINADE;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    // Taylor's coefficients: |r| stays below 0.35, where the next term is 2·10⁻⁸.
    let mut e = 1.0 / 5040.0;
    for coefficient in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        e = r.mul_add(e, 1.0 / coefficient);
    }
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits())) * e
}

/// `1 / (1 + e^−x)` to 3·10⁻⁷.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function to 5·10⁻⁷ (Abramowitz & Stegun, 1964, 7.1.26).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    (1.0 - tail(x.abs())).copysign(x)
}

/// `x · Φ(x)` to 10⁻⁶ of the larger of 1 and `|x|`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let half = 0.5 * x;
    half.mul_add(erf(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// `1 − erf(x)` for `x` of 0 and more.
#[inline(always)]
fn tail(x: f32) -> f32 {
    let t = 1.0 / x.mul_add(0.327_591_1, 1.0);
    let mut polynomial = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        polynomial = t.mul_add(polynomial, coefficient);
    }
    polynomial * t * exp(-x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its series, in double precision.
    fn exact_erf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn points(low: f32, high: f32) -> impl Iterator<Item = f32> {
        (0..=20_000).map(move |i| low + (high - low) * i as f32 / 20_000.0)
    }

    #[test]
    fn exponentials_are_within_their_error() {
        for x in points(-87.0, 88.0) {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "{x}: {error:e}");
        }
        assert!(exp(-1e30) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38 && exp(1e30).is_finite());
        for x in points(-100.0, 100.0) {
            let exact = 1.0 / (1.0 + f64::from(-x).exp());
            assert!((f64::from(sigmoid(x)) - exact).abs() < 3e-7, "{x}");
        }
    }

    #[test]
    fn error_function_and_gelu_are_within_their_error() {
        for x in points(-4.0, 4.0) {
            let error = (f64::from(erf(x)) - exact_erf(f64::from(x))).abs();
            assert!(error < 5e-7, "{x}: {error:e}");
            let wide = f64::from(x) / 2.0_f64.sqrt();
            let exact = 0.5 * f64::from(x) * (1.0 + exact_erf(wide));
            let error = (f64::from(gelu(x)) - exact).abs() / f64::from(x.abs().max(1.0));
            assert!(error < 1e-6, "{x}: {error:e}");
        }
        assert_eq!([erf(-30.0), erf(30.0)], [-1.0, 1.0]);
        assert_eq!([gelu(-30.0), gelu(30.0)], [0.0, 30.0]);
    }
}
