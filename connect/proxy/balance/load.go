package balance

// A Count is what the hosts of one priority are like: their number, or the sum
// of their weights.
type Count struct {
	Healthy, Degraded, Total int
	Any                      bool // there is a host, perhaps an excluded one
}

// Loads are the shares of traffic that priorities get.
type Loads struct {
	Healthy, Degraded []int  // percent that goes to healthy and to degraded hosts
	Panic             []bool // health is ignored

	fit, fitDegraded []int // percent that each could carry if it had to
}

// NewLoads works out the shares. A priority gets all that is left to it as long
// as its healthy percentage times the overprovisioning factor, both in percent,
// reaches 100.
func NewLoads(count []Count, overprovisioning int, panicThreshold float64) Loads {
	n := len(count)
	l := Loads{Healthy: make([]int, n), Degraded: make([]int, n), Panic: make([]bool, n)}
	healthy, degraded := make([]int, n), make([]int, n)
	sum := 0
	for p, c := range count {
		if c.Total == 0 {
			continue
		}
		healthy[p] = min(100, overprovisioning*c.Healthy/c.Total)
		degraded[p] = min(100, overprovisioning*c.Degraded/c.Total)
		sum += healthy[p] + degraded[p]
	}
	l.fit, l.fitDegraded = healthy, degraded
	normal := min(100, sum)
	// Nobody panics while all priorities together can carry the load.
	if normal < 100 && panicThreshold > 0 {
		everywhere := true
		for p, c := range count {
			usable := 0.0
			if c.Total > 0 {
				usable = 100 * float64(c.Healthy+c.Degraded) / float64(c.Total)
			}
			l.Panic[p] = normal == 0 || usable < panicThreshold
			everywhere = everywhere && l.Panic[p]
		}
		if everywhere {
			l.byNumber(count)
			return l
		}
	}
	if normal == 0 {
		return l
	}
	left := 100
	share := func(load, health []int) {
		for p := range health {
			load[p] = min(left, health[p]*100/normal)
			left -= load[p]
		}
	}
	share(l.Healthy, healthy)
	share(l.Degraded, degraded)
	// What rounding left over belongs to the first that has any.
	for p := range healthy {
		if healthy[p] > 0 {
			l.Healthy[p] += left
			return l
		}
	}
	for p := range degraded {
		if degraded[p] > 0 {
			l.Degraded[p] += left
			return l
		}
	}
	return l
}

// byNumber gives each priority its share of hosts.
func (l *Loads) byNumber(count []Count) {
	total := 0
	for _, c := range count {
		total += c.Total
	}
	left := 100
	for p, c := range count {
		if total > 0 {
			l.Healthy[p] = 100 * c.Total / total
			left -= l.Healthy[p]
		}
	}
	for p, c := range count {
		if c.Total > 0 || total == 0 && c.Any {
			l.Healthy[p] += left
			return
		}
	}
}

// Draw returns the priority that a uniform number falls to, or -1 if none has
// any load. Priorities to avoid come last.
func (l *Loads) Draw(random uint64, avoid Levels) (p int, degraded bool) {
	if len(l.Healthy) == 0 {
		return -1, false
	}
	if avoid != (Levels{}) {
		if p, degraded := l.drawOthers(random, avoid); p >= 0 {
			return p, degraded
		}
	} else if l.Healthy[0] == 100 {
		return 0, false
	}
	return l.draw(random, Levels{})
}

// drawOthers draws among the priorities that are not to be avoided, as if there were no others: each gets what is left
// to it and it can carry.
func (l *Loads) drawOthers(random uint64, avoid Levels) (int, bool) {
	sum := 0
	for p := range l.fit {
		if !avoid.Has(p) {
			sum += l.fit[p] + l.fitDegraded[p]
		}
	}
	if sum == 0 {
		return l.draw(random, avoid)
	}
	normal, n, left := min(100, sum), int(random%100), 100
	last, lastDegraded := -1, false
	for i, fit := range [...][]int{l.fit, l.fitDegraded} {
		for p := range fit {
			if avoid.Has(p) || fit[p] == 0 {
				continue
			}
			load := min(left, fit[p]*100/normal)
			if n < load {
				return p, i == 1
			}
			n, left = n-load, left-load
			last, lastDegraded = p, i == 1
		}
	}
	return last, lastDegraded // what rounding left over
}

func (l *Loads) draw(random uint64, avoid Levels) (int, bool) {
	sum := 0
	for p := range l.Healthy {
		if !avoid.Has(p) {
			sum += l.Healthy[p] + l.Degraded[p]
		}
	}
	if sum == 0 {
		return -1, false
	}
	n := int(random % 100)
	if avoid != (Levels{}) {
		n = int(random % uint64(sum))
	}
	for p, load := range l.Healthy {
		if avoid.Has(p) {
			continue
		}
		if n < load {
			return p, false
		}
		n -= load
	}
	for p, load := range l.Degraded {
		if avoid.Has(p) {
			continue
		}
		if n < load {
			return p, true
		}
		n -= load
	}
	return -1, false
}
