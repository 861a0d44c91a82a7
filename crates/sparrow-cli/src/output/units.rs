//! Numbers with their units.

/// `1.5 GB`: decimal units.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let unit = (n.max(1).ilog10() / 3).min(4) as usize;
    match unit {
        0 => format!("{n} B"),
        _ => format!("{:.2} {}", n as f64 / 1000f64.powi(unit as i32), UNITS[unit]),
    }
}

/// `12.3 %`.
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}
