//go:build !race

package waiters

const raceEnabled = false
