//go:build race

package waiters

const raceEnabled = true // what the race detector takes is counted, too
