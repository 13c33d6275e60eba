package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The user that the image runs as. Images without others have this number by convention.
const imageUser = 65532

// A descriptor names a blob of an image: https://github.com/opencontainers/image-spec/blob/main/descriptor.md.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// An index lists images, a manifest says what one consists of.
type index struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type imageConfig struct {
	Created time.Time `json:"created"`
	platform
	Config struct {
		User         string              `json:"User"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts"`
		Env          []string            `json:"Env"`
		Entrypoint   []string            `json:"Entrypoint"`
		Cmd          []string            `json:"Cmd"`
		Volumes      map[string]struct{} `json:"Volumes"`
		WorkingDir   string              `json:"WorkingDir"`
		Labels       map[string]string   `json:"Labels"`
		StopSignal   string              `json:"StopSignal"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history"`
}

type history struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// A layout is a folder with an image: https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
type layout struct{ dir string }

// add keeps a blob and names it.
func (l layout) add(mediaType string, data []byte) (descriptor, error) {
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: int64(len(data))}
	return d, os.WriteFile(filepath.Join(l.dir, "blobs", "sha256", name), data, 0o644)
}

func (l layout) addJSON(mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return l.add(mediaType, data)
}

// image makes the image of all architectures, as a folder and as an archive of it.
func (r *release) image() error {
	l := layout{filepath.Join(r.out, "sarn-"+r.version+"-oci")}
	if err := os.RemoveAll(l.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	labels := map[string]string{
		"org.opencontainers.image.title": "sarn", "org.opencontainers.image.description": "Service registry and service mesh",
		"org.opencontainers.image.version": r.version, "org.opencontainers.image.revision": r.commit,
		"org.opencontainers.image.created": r.made.Format(time.RFC3339), "org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.source": "https://github.com/sarnmesh/sarn",
	}
	all := index{SchemaVersion: 2, MediaType: mediaIndex, Annotations: labels}
	for _, arch := range r.arches {
		d, err := r.imageFor(l, arch, labels)
		if err != nil {
			return err
		}
		all.Manifests = append(all.Manifests, d)
	}
	d, err := l.addJSON(mediaIndex, all)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": r.version}
	top, err := json.Marshal(index{SchemaVersion: 2, MediaType: mediaIndex, Manifests: []descriptor{d}})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"index.json": top, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(l.dir, name), data, 0o644); err != nil {
			return err
		}
	}
	fmt.Println(l.dir)
	return r.archive(l.dir)
}

// imageFor makes the image of one architecture.
func (r *release) imageFor(l layout, arch string, labels map[string]string) (descriptor, error) {
	content, err := r.layer(arch)
	if err != nil {
		return descriptor{}, err
	}
	plain := sha256.Sum256(content)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(content)
	if err := w.Close(); err != nil {
		return descriptor{}, err
	}
	layer, err := l.add(mediaLayer, packed.Bytes())
	if err != nil {
		return descriptor{}, err
	}
	c := imageConfig{Created: r.made, platform: platform{Architecture: arch, OS: "linux"}}
	c.Config.User = fmt.Sprintf("%d:%d", imageUser, imageUser)
	c.Config.Env = []string{"PATH=/usr/bin"}
	c.Config.Entrypoint = []string{"/usr/bin/sarn"}
	c.Config.Cmd = []string{"agent", "-data-dir", "/var/lib/sarn", "-config-dir", "/etc/sarn"}
	c.Config.Volumes = map[string]struct{}{"/var/lib/sarn": {}}
	c.Config.WorkingDir, c.Config.StopSignal, c.Config.Labels = "/", "SIGTERM", labels
	c.Config.ExposedPorts = map[string]struct{}{}
	for _, port := range []string{"8300/tcp", "8301/tcp", "8301/udp", "8302/tcp", "8302/udp", "8500/tcp", "8501/tcp", "8502/tcp", "8503/tcp", "8600/tcp", "8600/udp"} {
		c.Config.ExposedPorts[port] = struct{}{}
	}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{"sha256:" + hex.EncodeToString(plain[:])}
	c.History = []history{{Created: r.made, CreatedBy: "make package"}}
	config, err := l.addJSON(mediaConfig, c)
	if err != nil {
		return descriptor{}, err
	}
	d, err := l.addJSON(mediaManifest, manifest{SchemaVersion: 2, MediaType: mediaManifest, Config: config, Layers: []descriptor{layer}, Annotations: labels})
	d.Platform = &c.platform
	return d, err
}

// layer is the only layer: the binary, its user, and the folders it needs.
func (r *release) layer(arch string) ([]byte, error) {
	binary, err := os.ReadFile(filepath.Join(r.stage, "sarn-linux-"+arch))
	if err != nil {
		return nil, err
	}
	license, err := os.ReadFile("../LICENSE")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		mode int64
		user int
		data []byte // nil for folders
	}{
		{"etc/", 0o755, 0, nil},
		{"etc/group", 0o644, 0, fmt.Appendf(nil, "root:x:0:\nsarn:x:%d:\n", imageUser)},
		{"etc/passwd", 0o644, 0, fmt.Appendf(nil, "root:x:0:0:root:/:/nonexistent\nsarn:x:%d:%d:Sarn agent:/var/lib/sarn:/nonexistent\n", imageUser, imageUser)},
		{"etc/sarn/", 0o755, 0, nil},
		{"tmp/", 0o1777, 0, nil},
		{"usr/", 0o755, 0, nil},
		{"usr/bin/", 0o755, 0, nil},
		{"usr/bin/sarn", 0o755, 0, binary},
		{"usr/share/", 0o755, 0, nil},
		{"usr/share/licenses/", 0o755, 0, nil},
		{"usr/share/licenses/sarn/", 0o755, 0, nil},
		{"usr/share/licenses/sarn/LICENSE", 0o644, 0, license},
		{"var/", 0o755, 0, nil},
		{"var/lib/", 0o755, 0, nil},
		{"var/lib/sarn/", 0o700, imageUser, nil},
	} {
		h := &tar.Header{Name: f.name, Mode: f.mode, Uid: f.user, Gid: f.user, ModTime: r.made, Size: int64(len(f.data)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if f.data == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		w.Write(f.data)
	}
	return b.Bytes(), w.Close()
}

// archive puts a layout in a file, which can be loaded without being unpacked.
func (r *release) archive(dir string) error {
	f, err := os.Create(dir + ".tar")
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, ModTime: r.made, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if d.IsDir() {
			h.Name, h.Mode, h.Typeflag = h.Name+"/", 0o755, tar.TypeDir
			return w.WriteHeader(h)
		}
		blob, err := os.Open(path)
		if err != nil {
			return err
		}
		defer blob.Close()
		info, err := blob.Stat()
		if err != nil {
			return err
		}
		h.Size = info.Size()
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = io.Copy(w, blob)
		return err
	})
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	fmt.Println(f.Name())
	return f.Close()
}
