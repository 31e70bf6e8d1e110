package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed crds.txt
var published string

// crds writes every file named in crds.txt, as one stream of YAML documents.
func crds(out io.Writer) error {
	folder := ""
	for line := range strings.Lines(published) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " "):
			text, err := os.ReadFile(filepath.Join(folder, fields[0]))
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, "---\n%s\n", text); err != nil {
				return err
			}
		case len(fields) == 2:
			var err error
			if folder, err = download(fields[0], fields[1]); err != nil {
				return err
			}
		default:
			return fmt.Errorf("crds.txt: %q is not MODULE@VERSION SUM", strings.TrimSpace(line))
		}
	}
	return nil
}

// download brings a module into Go's module cache and says where it is.
func download(module, sum string) (string, error) {
	text, err := exec.Command("go", "mod", "download", "-json", module).Output()
	var got struct{ Dir, Sum, Error string }
	if parsed := json.Unmarshal(text, &got); parsed != nil {
		return "", fmt.Errorf("%s: %w (%w)", module, parsed, err)
	}
	if got.Error != "" {
		return "", fmt.Errorf("%s: %s", module, got.Error)
	}
	if got.Sum != sum {
		return "", fmt.Errorf("%s has the sum %s, not %s", module, got.Sum, sum)
	}
	return got.Dir, nil
}
