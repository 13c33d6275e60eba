package state

// CountKeys returns how many keys there are.
func (v *View) CountKeys() (n int) {
	for range keys.PeekPrefix(v.tx, "id", nil) {
		n++
	}
	return n
}
