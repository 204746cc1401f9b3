package api

import (
	"context"
	"maps"
	"net/http"
	"net/url"

	"eboot"
)

// Difference says what became of something from one bundle to another.
type Difference string

// What may have become of it.
const (
	Added   Difference = "added"
	Removed Difference = "removed"
	Changed Difference = "changed"
)

// MaxDifferences bounds the applications, modules and files that a BundleDiff lists in all, and
// the lines of its boot script.
const MaxDifferences = 10_000

// BundleDiff is the answer to GET /v1/bundles/{from}/diff/{to}: what a slave gets from To
// that it does not get from From.
type BundleDiff struct {
	From         eboot.Ref         `json:"from"`
	To           eboot.Ref         `json:"to"`
	ERTS         string            `json:"erts"`         // the version that both were published for
	Applications []ApplicationDiff `json:"applications"` // those that differ, by name
	// Files are those that differ and are no modules, by path. Those of an application
	// that was added or removed are not among them.
	Files            []FileDiff     `json:"files"`
	Recompiled       int            `json:"recompiled"` // modules, of applications or not, that were only compiled anew
	BootScript       BootScriptDiff `json:"boot_script"`
	SysConfigChanged bool           `json:"sys_config_changed"`
	Truncated        bool           `json:"truncated,omitempty"` // more than MaxDifferences differ: the lists lack the rest
}

// ApplicationDiff is a directory lib/NAME-VERSION or lib/NAME that differs. One application is
// compared with the one of its name, whatever their versions are.
type ApplicationDiff struct {
	Name    string       `json:"name"`
	Change  Difference   `json:"change"`
	From    string       `json:"from"` // version; empty: it was absent, or its directory has none
	To      string       `json:"to"`
	Modules []ModuleDiff `json:"modules"` // those that differ, by name
	// Recompiled counts modules whose code is the same although their files differ.
	Recompiled int `json:"recompiled"`
}

// ModuleDiff is a module whose code differs.
type ModuleDiff struct {
	Module string     `json:"module"`
	Change Difference `json:"change"`
}

// FileDiff is a file or a symlink that differs in what it holds, in whether it may be
// executed, or in where it points to.
type FileDiff struct {
	Path   string     `json:"path"` // in To; of one that was removed: in From
	Change Difference `json:"change"`
}

// BootScriptDiff compares the boot scripts as they were published.
type BootScriptDiff struct {
	From    string   `json:"from"`            // where it stands in either bundle
	To      string   `json:"to"`              // path
	Changed bool     `json:"changed"`         // its bytes differ
	Lines   []string `json:"lines,omitempty"` // Erlang terms, one instruction each: "- TERM" of From, "+ TERM" of To
	// Warning says why there are no Lines, or not all of them.
	Warning string `json:"warning,omitempty"`
}

// Same reports whether a slave would find no difference but modules that were compiled anew.
func (d BundleDiff) Same() bool {
	return len(d.Applications) == 0 && len(d.Files) == 0 && !d.BootScript.Changed && !d.SysConfigChanged
}

// DiffBundles says what changed from one bundle to another, for one ERTS version; empty:
// for the only one that both have.
func (c *Client) DiffBundles(ctx context.Context, from, to eboot.Ref, erts string) (r BundleDiff, err error) {
	query := url.Values{}
	maps.Copy(query, c.state())
	if erts != "" {
		query.Set("erts", erts)
	}
	return r, c.do(ctx, call{method: "GET", path: bundlePath(from) + "/diff/" + url.PathEscape(to.String()), query: query}, &r)
}

func (s *Server) diffBundles(w http.ResponseWriter, r *http.Request) error {
	from, err := pathRef(r)
	if err != nil {
		return err
	}
	to, err := eboot.ParseRef(r.PathValue("other"))
	if err != nil {
		return err
	}
	if err := s.fresh(w, r); err != nil {
		return err
	}
	diff, err := s.backend.DiffBundles(r.Context(), from, to, r.URL.Query().Get("erts"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, diff)
}
