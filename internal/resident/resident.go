// Package resident keeps the memory of the process to what it uses.
package resident
