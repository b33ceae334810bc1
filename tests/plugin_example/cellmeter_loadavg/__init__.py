"""The machine's load average in cellmeter: a source, a rule and an export."""
