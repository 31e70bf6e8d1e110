//! What a benchmark reports.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One measured value, with what it is compared to.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub measure: String,
    /// In which unit.
    pub unit: &'static str,
    /// Horizon's value.
    pub ours: f64,
    /// The other value, where there is one.
    pub baseline: Option<f64>,
    /// Whose it is.
    pub baseline_name: Option<String>,
    /// Ours divided by the baseline.
    pub ratio: Option<f64>,
    /// What was hoped for, in words.
    pub aim: String,
    /// How many runs the value sums up.
    pub runs: usize,
}

impl Figure {
    /// A value without a baseline.
    pub fn new(
        measure: impl Into<String>,
        unit: &'static str,
        ours: f64,
        aim: impl Into<String>,
        runs: usize,
    ) -> Self {
        let (measure, aim) = (measure.into(), aim.into());
        Self { measure, unit, ours, baseline: None, baseline_name: None, ratio: None, aim, runs }
    }

    /// The same value beside another.
    pub fn against(mut self, name: impl Into<String>, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        self.baseline_name = Some(name.into());
        self.ratio = (baseline != 0.0).then(|| self.ours / baseline);
        self
    }
}

/// The figures of one benchmark.
#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure.
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// The figures so far.
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// Writes `NAME.json` into a folder.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&self.figures)?;
        std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let mut rows =
            vec![["measure", "ours", "unit", "baseline", "ratio", "aim", "runs"].map(str::to_owned)];
        for f in &self.figures {
            let baseline = match (&f.baseline_name, f.baseline) {
                (Some(name), Some(value)) => format!("{} {name}", number(value)),
                _ => "-".to_owned(),
            };
            let ratio = f.ratio.map_or_else(|| "-".to_owned(), number);
            let unit = f.unit.to_owned();
            rows.push([
                f.measure.clone(),
                number(f.ours),
                unit,
                baseline,
                ratio,
                f.aim.clone(),
                f.runs.to_string(),
            ]);
        }
        table(&rows)
    }
}

/// Rows in aligned columns, the first row underlined.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or_default());
    let mut text = String::new();
    for (line, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        if line == 0 {
            let _ = writeln!(text, "{}", widths.map(|width| "-".repeat(width)).join("  "));
        }
    }
    text
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value below which `share` (0 to 1) of the values lie; 0 without values.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 100.0);
        assert_eq!(percentile(&values, 0.99), 198.0);
        assert_eq!(percentile(&[3.0], 0.99), 3.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn ratios_are_ours_over_theirs() {
        let figure = Figure::new("speed", "Gb/s", 8.0, "more", 3).against("other", 4.0);
        assert_eq!(figure.ratio, Some(2.0));
        let mut report = Report::default();
        report.add(figure);
        assert!(report.table().contains("8.00"), "{}", report.table());
    }
}
