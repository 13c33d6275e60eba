package mvcc

// Watched returns the number of places at which somebody waits.
func Watched(db *DB) int {
	db.watches.mu.Lock()
	defer db.watches.mu.Unlock()
	held := 0
	for _, root := range db.watches.spots {
		if root != nil {
			walk(root, func(*spots) bool { held++; return true })
		}
	}
	return max(held, int(db.watches.places.Load()))
}
