package chain

// TrailFrom returns what a service or a subset of it stands for in turn: the targets, by their IDs, that redirects and
// default subsets lead through, of which the last is the one that is meant. It is nil where the entries make no sense.
func TrailFrom(r Request, entries Entries, service, subset string) []string {
	c := &compiler{Request: r, entries: entries, protocols: map[string]string{}}
	t := target{service, subset, r.Datacenter, ""}
	ids := []string{t.id()}
	c.walked = func(t target) {
		if id := t.id(); id != ids[len(ids)-1] {
			ids = append(ids, id)
		}
	}
	end, _, err := c.end(t)
	if err != nil {
		return nil
	}
	c.walked(end)
	return ids
}
