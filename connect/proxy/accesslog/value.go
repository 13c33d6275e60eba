package accesslog

// Literal returns the text of a format without operators; ok is false if it has some.
func (f *Format) Literal() (text string, ok bool) {
	for _, p := range f.parts {
		if p.op != nil {
			return "", false
		}
		text += p.text
	}
	return text, true
}

// AppendValue is like Append, but what is not known leaves no trace: an operator alone gives an empty value.
func (f *Format) AppendValue(b []byte, e *Entry) []byte {
	for i := range f.parts {
		switch p := &f.parts[i]; {
		case p.op == nil:
			b = append(b, p.text...)
		default:
			// An operator is asked twice: what it gives is not kept between.
			if p.op(e) != nil {
				b = append(b, escape(p.string(e))...)
			}
		}
	}
	return b
}
