// Command packaging makes what Sarn is installed from: packages for Debian and for systems with RPM, and an image in the
// OCI layout, for each architecture that it finds a binary of. The same sources give the same bytes.
package main

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// A release is what is packaged.
type release struct {
	version string
	commit  string
	made    time.Time // of everything in it
	stage   string    // folder with sarn-linux-ARCH
	out     string    // folder for what is made
	arches  []string
}

func main() {
	var r release
	date := flag.String("date", "", "time of the commit, RFC 3339")
	flag.StringVar(&r.version, "version", "", "semantic version")
	flag.StringVar(&r.commit, "commit", "", "commit of the sources")
	flag.StringVar(&r.stage, "stage", "", "folder with the binaries, sarn-linux-ARCH")
	flag.StringVar(&r.out, "out", "", "folder for what is made")
	flag.Parse()
	if err := r.make(*date); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// make makes everything; the working folder is that of this file.
func (r *release) make(date string) (err error) {
	if r.made, err = time.Parse(time.RFC3339, date); err != nil {
		return fmt.Errorf("-date: %w", err)
	}
	r.made = r.made.UTC()
	binaries, err := filepath.Glob(filepath.Join(r.stage, "sarn-linux-*"))
	if err != nil || len(binaries) == 0 {
		return fmt.Errorf("no binaries in %s", r.stage)
	}
	for _, b := range binaries {
		r.arches = append(r.arches, filepath.Base(b)[len("sarn-linux-"):])
	}
	for from, to := range map[string]string{"sarn.1": "sarn.1.gz", "../CHANGELOG.md": "changelog.gz"} {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := compress(data, filepath.Join(r.stage, to)); err != nil {
			return err
		}
	}
	// What Debian calls the changelog is of the packaging, and has a form of its own.
	entry := fmt.Sprintf("sarn (%s-1) unstable; urgency=medium\n\n  * Version %s; changelog.gz tells what is new.\n\n -- The Sarn authors <packages@sarnmesh.example>  %s\n",
		strings.Replace(r.version, "-", "~", 1), r.version, r.made.Format(time.RFC1123Z))
	if err := compress([]byte(entry), filepath.Join(r.stage, "changelog.Debian.gz")); err != nil {
		return err
	}
	for _, format := range []string{"deb", "rpm"} {
		for _, arch := range r.arches {
			if err := r.pack("nfpm.yaml", format, arch); err != nil {
				return err
			}
		}
		if err := r.pack("compat.yaml", format, "all"); err != nil {
			return err
		}
	}
	return r.image()
}

func compress(data []byte, to string) error {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	w.Write(data)
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(to, b.Bytes(), 0o644)
}

// pack makes the package that conf describes.
func (r *release) pack(conf, format, arch string) error {
	env := map[string]string{"VERSION": r.version, "ARCH": arch, "STAGE": r.stage}
	config, err := nfpm.ParseFileWithEnvMapping(conf, func(name string) string { return env[name] })
	if err != nil {
		return fmt.Errorf("%s: %w", conf, err)
	}
	config.MTime = r.made
	info, err := config.Get(format)
	if err != nil {
		return fmt.Errorf("%s: %w", conf, err)
	}
	info.MTime = r.made
	info = nfpm.WithDefaults(info)
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	path := filepath.Join(r.out, packager.ConventionalFileName(info))
	info.Target = path
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := packager.Package(info, f); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	fmt.Println(path)
	return f.Close()
}
