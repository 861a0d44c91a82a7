//! Pages in one file that load nothing from elsewhere; they are well-formed XML too.

/// A page with that title and body.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\" /><title>{}</title><style>body{{font:15px/1.5 \
         system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}}svg{{margin:.5rem}}\
         table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}}\
         .wide{{overflow-x:auto}}</style></head><body>{body}</body></html>\n",
        escape(title)
    )
}

/// Text that cannot be mistaken for markup.
pub fn escape(text: &str) -> String {
    // Control characters other than white space are allowed in no document.
    let text = text.replace(|c: char| c.is_control() && !c.is_whitespace(), "\u{fffd}");
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
