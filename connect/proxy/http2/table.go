package http2

// A table finds streams by their numbers. The zero table is empty.
type table struct {
	slots []*exchange // its length is a power of two, and at most half of it is taken
	n     int
}

func (t *table) home(id uint32) int { return int(id>>1) & (len(t.slots) - 1) }

func (t *table) get(id uint32) *exchange {
	if t.n == 0 {
		return nil
	}
	for i := t.home(id); ; i = (i + 1) & (len(t.slots) - 1) {
		if s := t.slots[i]; s == nil || s.id == id {
			return s
		}
	}
}

func (t *table) put(s *exchange) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots, t.n = make([]*exchange, max(8, 2*len(old))), 0
		for _, s := range old {
			if s != nil {
				t.put(s)
			}
		}
	}
	i := t.home(s.id)
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = s
	t.n++
}

func (t *table) del(s *exchange) {
	if t.n == 0 {
		return
	}
	mask := len(t.slots) - 1
	i := t.home(s.id)
	for t.slots[i] != s {
		if t.slots[i] == nil {
			return
		}
		i = (i + 1) & mask
	}
	t.n--
	// Those behind it move up, unless that would put them before their home.
	for j := (i + 1) & mask; t.slots[j] != nil; j = (j + 1) & mask {
		if (j-t.home(t.slots[j].id))&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = nil
}

// shrink frees the memory of an empty table.
func (t *table) shrink() {
	if t.n == 0 && len(t.slots) > 8 {
		t.slots = nil
	}
}
