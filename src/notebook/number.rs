//! Numbers as Python prints them after parsing them.

/// Appends the JSON number as `json.dumps(json.loads(text))` prints it: integers keep all digits, others become the shortest
/// form of the nearest double (`1e-07`, `1.0`, `1e+16`). Numbers outside the range of doubles are unchanged: Python would
/// print `Infinity`, which is not JSON.
pub(super) fn push_number(text: &str, out: &mut String) {
    if !text.contains(['.', 'e', 'E']) {
        out.push_str(if text == "-0" { "0" } else { text });
        return;
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => push_float(number, out),
        _ => out.push_str(text),
    }
}

/// Python's `repr` of a finite float: fixed notation for exponents from -4 to 15, otherwise scientific with at least two
/// exponent digits.
fn push_float(number: f64, out: &mut String) {
    // Both languages print the shortest digits that read back as the same double; only the layout differs.
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    out.push_str(sign);
    if (-4..16).contains(&exponent) {
        push_fixed(&digits, exponent, out);
        return;
    }
    out.push_str(mantissa);
    let sign = if exponent < 0 { '-' } else { '+' };
    out.push_str(&format!("e{sign}{:02}", exponent.abs()));
}

/// Fixed notation of `digits`, with the point after the first digit, times ten to the power of `exponent`.
fn push_fixed(digits: &str, exponent: i32, out: &mut String) {
    let whole = usize::try_from(exponent + 1).unwrap_or(0);
    if whole == 0 {
        out.push_str("0.");
        let zeros = usize::try_from(-exponent - 1).unwrap_or(0);
        out.extend(std::iter::repeat_n('0', zeros));
        out.push_str(digits);
    } else if digits.len() <= whole {
        out.push_str(digits);
        out.extend(std::iter::repeat_n('0', whole - digits.len()));
        out.push_str(".0");
    } else {
        out.push_str(&digits[..whole]);
        out.push('.');
        out.push_str(&digits[whole..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_in_python() {
        let cases = [
            ("1", "1"),
            ("-0", "0"),
            ("-0.0", "-0.0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1.0", "1.0"),
            ("1.50", "1.5"),
            ("1e0", "1.0"),
            ("1E5", "100000.0"),
            ("1e15", "1000000000000000.0"),
            ("1e16", "1e+16"),
            ("1.25e16", "1.25e+16"),
            ("123456789.123456789", "123456789.12345679"),
            ("0.0001", "0.0001"),
            ("0.00012", "0.00012"),
            ("0.00001", "1e-05"),
            ("1e-7", "1e-07"),
            ("-2.5e-300", "-2.5e-300"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("1e+400", "1e+400"),
            ("1e-400", "0.0"),
        ];
        for (text, expected) in cases {
            let mut out = String::new();
            push_number(text, &mut out);
            assert_eq!(out, expected, "{text}");
        }
    }
}
