//! A bar chart of ratios on a logarithmic scale, as SVG.
//!
//! Bars begin at 1, where both are alike: to the right ours is better, to the
//! left the other. Every bar says its ratio, so that nothing must be read off
//! the scale, and all text is escaped: any label leaves the picture well-formed.

use std::fmt::Write as _;

/// Between a label and the scale: room for the ratio of a bar to the left.
const MARGIN: f64 = 40.0;
/// A letter at most, on average.
const LETTER: f64 = 7.0;
const WIDTH: f64 = 560.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 52.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const COLORS: [&str; 6] = ["#2c6fbb", "#d97b29", "#3d9a50", "#a34a8e", "#7a7a7a", "#b8a12a"];

/// A chart.
pub(crate) struct Chart {
    /// Above it.
    pub(crate) title: String,
    /// What each bar of a group stands for.
    pub(crate) series: Vec<String>,
    /// The groups, from top to bottom.
    pub(crate) groups: Vec<Group>,
}

/// The bars of one workload.
pub(crate) struct Group {
    /// To the left of them.
    pub(crate) label: String,
    /// One for each series; not all need be there.
    pub(crate) ratios: Vec<Option<f64>>,
}

/// Draws it; `None` when there is no bar.
pub(crate) fn svg(chart: &Chart) -> Option<String> {
    let usable = |ratio: &f64| ratio.is_finite() && *ratio > 0.0;
    let all: Vec<f64> =
        chart.groups.iter().flat_map(|g| g.ratios.iter().flatten().copied().filter(usable)).collect();
    if all.is_empty() {
        return None;
    }
    let longest = chart.groups.iter().map(|g| g.label.chars().count()).max().unwrap_or(0);
    let left = MARGIN + LETTER * as_f64(longest);
    let scale = Scale::over(left, &all);
    let mut body = String::new();
    let mut y = TOP + BAR * 1.5 * as_f64(chart.series.len());
    for (n, name) in chart.series.iter().enumerate() {
        let at = TOP + BAR * 1.5 * as_f64(n);
        rect(&mut body, left, at - BAR + 2.0, BAR, BAR, color(n));
        text(&mut body, left + BAR + 6.0, at, "start", name);
    }
    let top = y;
    y += GAP;
    for group in &chart.groups {
        let bars = group.ratios.iter().enumerate().filter_map(|(n, r)| r.filter(usable).map(|r| (n, r)));
        let bars: Vec<(usize, f64)> = bars.collect();
        if bars.is_empty() {
            continue;
        }
        let middle = y + BAR * as_f64(bars.len()) / 2.0;
        text(&mut body, left - MARGIN, middle + 4.0, "end", &group.label);
        for (n, ratio) in bars {
            let (one, end) = (scale.x(1.0), scale.x(ratio));
            rect(&mut body, one.min(end), y + 1.0, (end - one).abs().max(1.0), BAR - 2.0, color(n));
            let (at, anchor) = if ratio >= 1.0 { (end + 4.0, "start") } else { (end - 4.0, "end") };
            text(&mut body, at, y + BAR - 3.0, anchor, &format!("{ratio:.2}"));
            y += BAR;
        }
        y += GAP;
    }
    let (width, height) = (left + WIDTH + RIGHT, y + 26.0);
    let mut out = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0}' height='{height:.0}' \
         viewBox='0 0 {width:.0} {height:.0}' font-family='sans-serif' font-size='12'>\n"
    );
    rect(&mut out, 0.0, 0.0, width, height, "white");
    for (value, labelled) in scale.marks() {
        let x = scale.x(value);
        let shade = if value == 1.0 { "#333" } else { "#ddd" };
        let _infallible =
            writeln!(out, "<line x1='{x:.1}' y1='{top:.1}' x2='{x:.1}' y2='{y:.1}' stroke='{shade}'/>");
        if labelled {
            text(&mut out, x, y + 16.0, "middle", &format!("{value}×"));
        }
    }
    text(&mut out, 12.0, 22.0, "start", &chart.title);
    Some(out + &body + "</svg>\n")
}

/// Where ratios lie: whole powers of ten at both ends, 1 among them.
struct Scale {
    left: f64,
    low: i32,
    high: i32,
}

impl Scale {
    fn over(left: f64, ratios: &[f64]) -> Self {
        let end = |round: fn(f64) -> f64| {
            #[expect(clippy::cast_possible_truncation, reason = "the power of ten of a double is small")]
            ratios.iter().map(move |ratio| round(ratio.log10()) as i32)
        };
        let low = end(f64::floor).min().unwrap_or(0);
        let high = end(f64::ceil).max().unwrap_or(0);
        Self { left, low: low.min(0), high: high.max(1) }
    }

    fn x(&self, ratio: f64) -> f64 {
        self.left + WIDTH * (ratio.log10() - f64::from(self.low)) / f64::from(self.high - self.low)
    }

    /// Lines across the chart, and whether each has room for a label.
    fn marks(&self) -> Vec<(f64, bool)> {
        let few = self.high - self.low <= 3;
        let of = |power: i32| [1.0, 2.0, 5.0].map(|n| (n * 10f64.powi(power), few || n == 1.0));
        let mut marks: Vec<(f64, bool)> = (self.low..self.high).flat_map(of).collect();
        marks.push((10f64.powi(self.high), true));
        marks
    }
}

fn rect(out: &mut String, x: f64, y: f64, width: f64, height: f64, fill: &str) {
    let _infallible =
        writeln!(out, "<rect x='{x:.1}' y='{y:.1}' width='{width:.1}' height='{height:.1}' fill='{fill}'/>");
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _infallible =
        writeln!(out, "<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}' fill='#222'>{content}</text>");
}

fn color(series: usize) -> &'static str {
    COLORS[series % COLORS.len()]
}

fn as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use waystation_harness::xml::Element;

    use super::*;

    fn chart(groups: &[(&str, &[Option<f64>])]) -> Chart {
        let group = |(label, ratios): &(&str, &[Option<f64>])| Group {
            label: (*label).to_owned(),
            ratios: ratios.to_vec(),
        };
        Chart {
            title: "a <title> & more".to_owned(),
            series: vec!["one".to_owned(), "two".to_owned()],
            groups: groups.iter().map(group).collect(),
        }
    }

    fn count(svg: &str, part: &str) -> usize {
        svg.matches(part).count()
    }

    #[test]
    fn every_ratio_is_a_bar_with_its_value() {
        let svg = svg(&chart(&[
            ("pairs", &[Some(12.345), Some(0.25)]),
            ("idle", &[None, Some(3.0)]),
            ("none", &[None, Some(f64::NAN)]),
        ]))
        .unwrap();
        Element::parse(&svg, "").unwrap();
        for label in [">12.35<", ">0.25<", ">3.00<", ">pairs<", ">idle<", "a &lt;title&gt; &amp; more"] {
            assert!(svg.contains(label), "{label} in {svg}");
        }
        assert!(!svg.contains(">none<") && !svg.contains("NaN"), "{svg}");
        // The background, two of the legend, three bars.
        assert_eq!(count(&svg, "<rect"), 6);
    }

    #[test]
    fn without_a_ratio_there_is_no_picture() {
        assert!(svg(&chart(&[("a", &[None]), ("b", &[Some(f64::INFINITY), Some(0.0)])])).is_none());
    }

    #[test]
    fn scales_hold_one_and_all_ratios() {
        let scale = Scale::over(7.0, &[0.02, 40.0]);
        assert_eq!((scale.low, scale.high), (-2, 2));
        assert!((scale.x(0.01) - 7.0).abs() < 1e-6 && (scale.x(100.0) - 7.0 - WIDTH).abs() < 1e-6);
        assert!((scale.x(1.0) - 7.0 - WIDTH / 2.0).abs() < 1e-6);
        let scale = Scale::over(7.0, &[1.5]);
        assert_eq!((scale.low, scale.high), (0, 1));
        assert!(scale.marks().contains(&(10.0, true)));
        assert_eq!(Scale::over(7.0, &[10.0]).high, 1);
    }
}
