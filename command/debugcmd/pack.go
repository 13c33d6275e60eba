package debugcmd

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// pack makes an archive of a folder, which is its only top entry.
func pack(dir, path string) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	zip := gzip.NewWriter(out)
	archive := tar.NewWriter(zip)
	defer func() {
		for _, c := range []io.Closer{archive, zip, out} {
			if closing := c.Close(); err == nil {
				err = closing
			}
		}
	}()
	top := filepath.Base(dir)
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return nil // not one of ours
		}
		header, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		header.Name = filepath.ToSlash(filepath.Join(top, inside))
		header.Uname, header.Gname, header.Uid, header.Gid = "", "", 0, 0
		if err := archive.WriteHeader(header); err != nil || info.IsDir() {
			return err
		}
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(archive, in)
		return err
	})
}
