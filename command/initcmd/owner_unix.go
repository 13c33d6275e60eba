//go:build unix

package initcmd

import (
	"os"
	"syscall"
)

// An owner is the user whom the agent runs as, by the folder that was made for it. The nil owner takes nothing.
type owner struct{ uid, gid int }

// ownerOf returns whom a folder belongs to, nil when that is who runs this, when he may give nothing away, or when there
// is no such folder.
func ownerOf(dir string) *owner {
	info, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil
	}
	return &owner{int(st.Uid), int(st.Gid)}
}

func (o *owner) take(path string) error {
	if o == nil {
		return nil
	}
	return os.Chown(path, o.uid, o.gid)
}
