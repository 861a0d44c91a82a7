//! Line plots as SVG.

use std::fmt::Write;

use crate::html::escape;

/// A line plot with labelled axes.
pub struct Plot<'a> {
    pub title: &'a str,
    /// Label of the horizontal axis.
    pub x: &'a str,
    /// Label of the vertical axis.
    pub y: &'a str,
    /// The vertical axis starts at 0.
    pub from_zero: bool,
    pub lines: Vec<Line>,
}

/// Points joined in their order.
pub struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Line {
    /// Points that are not finite are left out.
    pub fn new(name: &str, mut points: Vec<(f64, f64)>) -> Self {
        points.retain(|(x, y)| x.is_finite() && y.is_finite());
        Line { name: name.to_owned(), points }
    }
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;
const COLOURS: [&str; 8] = ["#0b6e99", "#c2410c", "#4d7c0f", "#6b21a8", "#a16207", "#be185d", "#0f766e", "#475569"];

impl Plot<'_> {
    /// The plot as an `<svg>` element.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|l| &l.points);
        let (x_low, x_high) = range(points().map(|p| p.0), false);
        // Room for a line per name beside the title.
        let top = TOP.max(10.0 + 13.0 * self.lines.len() as f64);
        let (y_low, y_high) = range(points().map(|p| p.1), self.from_zero);
        let to_x = |x: f64| LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT);
        let to_y = |y: f64| HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - top - BOTTOM);
        let mut svg = format!(
            "<svg width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}' font-family='sans-serif' font-size='11' \
             role='img'><text x='{LEFT}' y='18' font-size='14' font-weight='bold'>{}</text>",
            escape(self.title)
        );
        for tick in ticks(y_low, y_high) {
            let (y, label) = (to_y(tick), label(tick));
            let _ = write!(
                svg,
                "<line x1='{LEFT}' x2='{:.1}' y1='{y:.1}' y2='{y:.1}' stroke='#ddd' /><text x='{:.1}' y='{:.1}' text-anchor='end'>{label}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0
            );
        }
        for tick in ticks(x_low, x_high) {
            let (x, y) = (to_x(tick), HEIGHT - BOTTOM + 15.0);
            let _ = write!(svg, "<text x='{x:.1}' y='{y:.1}' text-anchor='middle'>{}</text>", label(tick));
        }
        let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0);
        let _ = write!(svg, "<text x='{middle}' y='{bottom}' text-anchor='middle'>{}</text>", escape(self.x));
        let (x, y) = (14.0, (top + HEIGHT - BOTTOM) / 2.0);
        let rotate = format!("rotate(-90 {x} {y})");
        let _ =
            write!(svg, "<text x='{x}' y='{y}' text-anchor='middle' transform='{rotate}'>{}</text>", escape(self.y));
        for (i, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let path: Vec<String> =
                line.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", to_x(x), to_y(y))).collect();
            let _ = write!(
                svg,
                "<polyline fill='none' stroke='{colour}' stroke-width='1.8' points='{}' />",
                path.join(" ")
            );
            if line.points.len() <= 40 {
                for &(x, y) in &line.points {
                    let _ = write!(svg, "<circle cx='{:.1}' cy='{:.1}' r='2.5' fill='{colour}' />", to_x(x), to_y(y));
                }
            }
            let (x, y) = (WIDTH - RIGHT, 18.0 + 13.0 * i as f64);
            let name = escape(&line.name);
            let _ = write!(svg, "<text x='{x}' y='{y}' text-anchor='end' fill='{colour}'>{name}</text>");
        }
        svg + "</svg>"
    }
}

/// Extremes, widened where they are one; 0 to 1 without values.
fn range(values: impl Iterator<Item = f64>, from_zero: bool) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    match (low > high, from_zero) {
        (true, _) => (0.0, 1.0),
        (_, true) => (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
        _ if low == high => (low - 0.5, high + 0.5),
        _ => (low, high),
    }
}

/// Round values in a range, four to nine of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|&t| t <= high + step * 1e-9).take(20).collect()
}

fn label(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0).len(), 6);
        assert!(ticks(28.93, 31.2).iter().all(|t| (28.93..=31.2).contains(t)));
        assert_eq!(ticks(0.0, 7.0), [0.0, 2.0, 4.0, 6.0]);
    }

    #[test]
    fn a_plot_has_its_points_and_survives_odd_ones() {
        let line = |points: Vec<(f64, f64)>| Plot {
            title: "a < b",
            x: "x",
            y: "y",
            from_zero: false,
            lines: vec![Line::new("only", points)],
        };
        let svg = line(vec![(0.0, 1.0), (1.0, 3.0), (2.0, f64::NAN)]).svg();
        assert!(svg.contains("a &lt; b") && svg.matches("<circle").count() == 2 && !svg.contains("NaN"));
        for points in [vec![], vec![(1.0, 1.0)], vec![(f64::INFINITY, 0.0)]] {
            assert!(!line(points).svg().contains("NaN"));
        }
    }
}
