//! Spread of a figure over the rounds.

use serde::Serialize;

/// Lowest, median and highest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(in crate::torture::bench) struct Spread {
    pub(in crate::torture::bench) min: f64,
    pub(in crate::torture::bench) median: f64,
    pub(in crate::torture::bench) max: f64,
}

impl Spread {
    /// `None` of no figures.
    pub(in crate::torture::bench) fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (min, max) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median =
            if figures.len() % 2 == 1 { figures[middle] } else { f64::midpoint(figures[middle - 1], figures[middle]) };
        Some(Self { min, median, max })
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0]), Some(Spread { min: 3.0, median: 3.0, max: 3.0 }));
        assert_eq!(Spread::of(vec![3.0, 1.0, 7.0]), Some(Spread { min: 1.0, median: 3.0, max: 7.0 }));
        assert_eq!(Spread::of(vec![4.0, 3.0, 1.0, 7.0]), Some(Spread { min: 1.0, median: 3.5, max: 7.0 }));
    }
}
