//! Robust statistics: a few wild values move neither the middle nor the spread. Integers throughout, so that the same facts
//! give the same answer everywhere.

/// The spread of a normal distribution is this many thousandths of its median absolute deviation.
const NORMAL: i64 = 1483;

/// The middle value, and the median of the distances from it. `None` of nothing.
pub fn median_and_deviation(values: &[i64]) -> Option<(i64, i64)> {
    let middle = median(values)?;
    let distances: Vec<i64> =
        values.iter().map(|value| value.saturating_sub(middle).saturating_abs()).collect();
    Some((middle, median(&distances)?))
}

/// The middle value; of two, the lower. `None` of nothing.
pub fn median(values: &[i64]) -> Option<i64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// How many spreads a value lies above the middle, in tenths. A spread is at least `least`.
pub fn tenths_above(value: i64, values: &[i64], least: i64) -> Option<i64> {
    let (middle, deviation) = median_and_deviation(values)?;
    let spread = (deviation.saturating_mul(NORMAL) / 1000).max(least).max(1);
    Some(value.saturating_sub(middle).saturating_mul(10) / spread)
}

/// The binary logarithm in sixteenths: equal steps are equal factors. 0 of 0.
pub fn log2_sixteenths(value: u64) -> i64 {
    if value == 0 {
        return 0;
    }
    let whole = i64::from(value.ilog2());
    // The sixteen steps of an octave, linearly between them: within 1/16 of the truth.
    let shift = whole - 4;
    let mantissa = if shift >= 0 { value >> shift } else { value << -shift };
    whole * 16 + i64::try_from(mantissa).unwrap_or(31) - 16
}

/// Adds a value to the newest `most`.
pub fn push(values: &mut Vec<i64>, value: i64, most: usize) {
    if values.len() >= most {
        values.drain(..=values.len() - most);
    }
    values.push(value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[5]), Some(5));
        assert_eq!(median(&[9, 1, 5]), Some(5));
        assert_eq!(median_and_deviation(&[1, 1, 2, 2, 4, 6, 9]), Some((2, 1)));
        assert_eq!(tenths_above(12, &[0, 0, 0, 0], 2), Some(60));
        assert_eq!([0, 1, 2, 3, 4, 1 << 40].map(log2_sixteenths), [0, 0, 16, 24, 32, 640]);
        let mut values = vec![1, 2, 3];
        push(&mut values, 4, 3);
        assert_eq!(values, [2, 3, 4]);
    }

    proptest! {
        #[test]
        fn a_minority_of_wild_values_cannot_move_the_middle_out_of_the_rest(
            mut tame in prop::collection::vec(0_i64..100, 11..40),
            wild in prop::collection::vec(any::<i64>(), 0..5),
        ) {
            tame.extend(wild);
            let (middle, deviation) = median_and_deviation(&tame).unwrap();
            prop_assert!((0..100).contains(&middle));
            prop_assert!(deviation <= 100);
        }

        #[test]
        fn logarithms_grow(a in any::<u64>(), b in any::<u64>()) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(log2_sixteenths(low) <= log2_sixteenths(high));
        }
    }
}
