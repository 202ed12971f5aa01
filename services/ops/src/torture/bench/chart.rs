//! Plots as SVG, made without a library: horizontal bars with the spread over the rounds, and stacks by process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::figure;
use super::report::Spread;

const WIDTH: f64 = 980.0;
const LABEL: f64 = 400.0;
const ROW: f64 = 26.0;
const MARGIN: f64 = 44.0;
/// From the left end of the bars to the right end of the longest.
const BARS: f64 = WIDTH - LABEL - 90.0;
/// Readable without colours, too: from dark to light.
const COLOURS: [&str; 8] = ["#1f3b63", "#2f6fb0", "#57a0c9", "#8fc1a9", "#c9a24b", "#d97b45", "#b5b5b5", "#dcdcdc"];

/// Rates on a logarithmic scale: the workloads differ by three orders of magnitude.
pub(super) fn rates(bars: &[(&str, Spread)]) -> String {
    let lowest = bars.iter().map(|(_, spread)| spread.min).fold(f64::INFINITY, f64::min).clamp(1.0, 1e9);
    let highest = bars.iter().map(|(_, spread)| spread.max).fold(1.0, f64::max);
    let from = lowest.log10().floor();
    let to = highest.log10().ceil().max(from + 1.0);
    let x = |rate: f64| LABEL + (rate.max(1.0).log10() - from) / (to - from) * BARS;
    let mut svg = begin(bars.len(), "per second, logarithmic; whiskers from the lowest to the highest round");
    let mut power = from;
    while power <= to {
        grid(&mut svg, bars.len(), x(10f64.powf(power)), 10f64.powf(power));
        power += 1.0;
    }
    for (row, (title, spread)) in bars.iter().enumerate() {
        let (top, end) = (top_of(row), x(spread.median));
        let fill = if title.starts_with("Rollcall") { COLOURS[1] } else { COLOURS[6] };
        label(&mut svg, top, title);
        bar(&mut svg, top, (LABEL, end), fill);
        // A write to a String does not fail.
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" stroke=\"black\"/>",
            x(spread.min),
            x(spread.max),
            middle = top + ROW / 2.0,
        );
        amount(&mut svg, top, x(spread.max), spread.median);
    }
    svg + "</svg>\n"
}

/// Amounts by process, one stack a row.
pub(super) fn stacks(rows: &[(&str, BTreeMap<String, f64>)]) -> String {
    let names: BTreeSet<&str> = rows.iter().flat_map(|(_, amounts)| amounts.keys()).map(String::as_str).collect();
    let colour = |name: &str| {
        let position = names.iter().position(|known| *known == name).unwrap_or_default();
        COLOURS[position % COLOURS.len()]
    };
    let total = |amounts: &BTreeMap<String, f64>| amounts.values().sum::<f64>();
    let highest = rows.iter().map(|(_, amounts)| total(amounts)).fold(1.0, f64::max);
    let mut svg = begin(rows.len(), "CPU time for each request or command, in microseconds");
    for step in 0..=4 {
        let amount = highest * f64::from(step) / 4.0;
        grid(&mut svg, rows.len(), LABEL + amount / highest * BARS, amount);
    }
    let mut left = 10.0;
    for name in &names {
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"26\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{:.1}\" y=\"37\">{name}</text>",
            colour(name),
            left + 16.0,
        );
        left += 30.0 + 7.5 * figure(name.len() as u64);
    }
    for (row, (title, amounts)) in rows.iter().enumerate() {
        let top = top_of(row);
        label(&mut svg, top, title);
        let mut from = LABEL;
        for (name, amount) in amounts {
            let to = from + amount / highest * BARS;
            bar(&mut svg, top, (from, to), colour(name));
            from = to;
        }
        self::amount(&mut svg, top, from, total(amounts));
    }
    svg + "</svg>\n"
}

fn height(rows: usize) -> f64 {
    2.0 * MARGIN + ROW * figure(rows as u64)
}

fn top_of(row: usize) -> f64 {
    MARGIN + ROW * figure(row as u64)
}

fn begin(rows: usize, title: &str) -> String {
    let height = height(rows);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LABEL}\" y=\"18\" fill=\"#444\">{title}</text>\n",
    )
}

fn grid(svg: &mut String, rows: usize, at: f64, value: f64) {
    let height = height(rows);
    let _ = writeln!(
        svg,
        "<line x1=\"{at:.1}\" y1=\"{MARGIN}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
         <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{value:.0}</text>",
        height - MARGIN,
        height - MARGIN + 18.0,
    );
}

fn label(svg: &mut String, top: f64, title: &str) {
    let (x, y) = (LABEL - 8.0, top + ROW / 2.0 + 4.0);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{title}</text>");
}

fn bar(svg: &mut String, top: f64, (from, to): (f64, f64), fill: &str) {
    let (y, width, height) = (top + 4.0, (to - from).max(1.0), ROW - 8.0);
    let _ = writeln!(
        svg,
        "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
    );
}

fn amount(svg: &mut String, top: f64, x: f64, value: f64) {
    let (x, y) = (x + 6.0, top + ROW / 2.0 + 4.0);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{value:.0}</text>");
}
