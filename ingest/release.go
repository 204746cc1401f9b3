package ingest

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"eboot"
)

// Found is what a source turned out to be.
type Found struct {
	ERTS       []string // given or found, at least one
	BootScript string   // path in the tree of a regular file
	SysConfig  string   // path in the tree of a regular file; empty: there is none

	// Variables are the boot variables that the boot script uses beside ROOT.
	// A slave must be given each: -boot_var NAME ROOTDIR/Directory.
	Variables []BootVariable

	Files  int   // regular files
	Bytes  int64 // sum of their sizes
	Layout string
	Notes  []string // what people should know of how the tree was read, a sentence each
}

// BootVariable is one variable of a boot script.
type BootVariable struct {
	Name string
	// Directory is the directory of the tree that it must stand for, "." for the
	// root of it. Empty: no directory of the tree has what the script asks for.
	Directory string
}

// The layouts that are told apart.
const (
	LayoutOTP      = "installed OTP tree"
	LayoutSystools = "release made by systools"
	LayoutRebar3   = "release made by rebar3"
	LayoutMix      = "release made by mix"
	LayoutOther    = "tree with a boot script"
)

// release finds its way in a tree that is completely read.
type release struct {
	tree      *tree
	isArchive bool
	opts      Options
	report    *report

	boot, sysConfig string
	version         string // releases/VERSION that is booted, if any
	startERTS       string // what start_erl.data says
	erts            []string
	script          []byte
}

// find changes the tree into the one to publish, and finds what boots it.
func (r *release) find() error {
	if r.isArchive {
		r.strip()
	}
	r.readStartData()
	if err := r.findBoot(); err != nil {
		return err
	}
	variables := bootVariables(r.script)
	merged, err := r.tree.mergeVariableTars(variables)
	if err != nil {
		return err
	}
	for _, name := range merged {
		r.report.note(fmt.Sprintf("merged %s.tar.gz, the variable tar of $%s, into the root of the bundle", name, name))
	}
	r.tree.removeSecrets(r.report.note)
	if !r.opts.Dereference || r.isArchive {
		if err := r.tree.refuseLeavingLinks(r.isArchive); err != nil {
			return err
		}
	}
	r.tree.warnOfDanglingLinks(r.report)
	r.findConfig()
	return r.findERTS()
}

// strip removes the directories that hold everything: people pack a release
// with and without its own directory. It goes down to the first that looks like the
// top of a release, else to the first that has the boot script given.
func (r *release) strip() {
	prefixes := r.tree.soleDirectories()
	i := slices.IndexFunc(prefixes, func(prefix string) bool {
		return r.tree.nodes[prefix+"releases"] != nil || r.tree.nodes[prefix+"bin/start.boot"] != nil
	})
	if i < 0 {
		i = slices.IndexFunc(prefixes, func(prefix string) bool {
			_, n := r.givenBoot(prefix)
			return n != nil
		})
	}
	if i < 1 {
		return
	}
	prefix := prefixes[i]
	for _, dir := range prefixes[1 : i+1] {
		r.tree.remove(strings.TrimSuffix(dir, "/"))
	}
	nodes := make(map[string]*node, len(r.tree.nodes))
	for p, n := range r.tree.nodes {
		nodes[strings.TrimPrefix(p, prefix)] = n
	}
	r.tree.nodes = nodes
	r.opts.Boot = strings.TrimPrefix(r.opts.Boot, prefix)
	r.report.note(fmt.Sprintf("the bundle begins below %s, which holds the whole archive", shorten(prefix)))
}

// soleDirectories returns "" and then, deeper each time, the directories
// that hold all of the tree, with a slash at the end.
func (t *tree) soleDirectories() []string {
	const deepest = 16
	children := map[string][]string{}
	for p := range t.nodes {
		if strings.Count(p, "/") < deepest {
			children[path.Dir(p)] = append(children[path.Dir(p)], p)
		}
	}
	prefixes := []string{""}
	for at := "."; len(children[at]) == 1 && t.nodes[children[at][0]].kind == eboot.KindDirectory; {
		at = children[at][0]
		prefixes = append(prefixes, at+"/")
	}
	return prefixes
}

// readStartData reads releases/start_erl.data: "ERTS RELEASE", as
// release_handler writes it and start_erl reads it.
func (r *release) readStartData() {
	_, n := r.tree.file("releases/start_erl.data")
	if n == nil {
		return
	}
	fields := strings.Fields(string(n.content))
	if len(fields) != 2 || strings.Contains(fields[1], "/") || eboot.CheckTreePath("releases/"+fields[1]) != nil {
		r.report.warn("releases/start_erl.data is not \"ERTS RELEASE\" and is not used")
		return
	}
	if eboot.CheckERTS(fields[0]) == nil {
		r.startERTS = fields[0]
	}
	r.version = fields[1]
}

// givenBoot returns the file that Options.Boot names below a directory.
func (r *release) givenBoot(prefix string) (string, *node) {
	if r.opts.Boot == "" {
		return "", nil
	}
	given := path.Clean(prefix + r.opts.Boot)
	if at, n := r.tree.file(given); n != nil {
		return at, n
	}
	return r.tree.file(given + ".boot")
}

// otherScripts are the boot scripts beside the one of a release that starts it.
var otherScripts = []string{"start_clean.boot", "start_sasl.boot", "no_dot_erlang.boot", "start_none.boot"}

func (r *release) findBoot() error {
	at, n := r.givenBoot("")
	if n == nil && r.opts.Boot != "" {
		return fmt.Errorf("boot script %q: no such file in the tree: %w", r.opts.Boot, eboot.ErrInvalid)
	}
	if n == nil && r.version != "" {
		if at, n = r.tree.file("releases/" + r.version + "/start.boot"); n == nil {
			named := slices.DeleteFunc(r.releaseFiles(r.version, ".boot"), func(p string) bool { return slices.Contains(otherScripts, path.Base(p)) })
			if len(named) == 1 {
				at, n = r.tree.file(named[0])
			}
		}
	}
	var several []string
	for _, name := range []string{"releases/*/start.boot", "bin/start.boot", "releases/*/start_clean.boot"} {
		if n != nil {
			break
		}
		candidates := []string{name}
		if strings.Contains(name, "*") {
			candidates = r.inReleases(path.Base(name))
		}
		if len(candidates) == 1 {
			at, n = r.tree.file(candidates[0])
		} else if several == nil {
			several = candidates
		}
	}
	switch {
	case n == nil && len(several) > 0:
		return fmt.Errorf("no boot script: which of %s is not clear, name it with --boot FILE: %w", strings.Join(several[:min(len(several), 5)], ", "), eboot.ErrInvalid)
	case n == nil:
		return noBootScript(r.elsewhere())
	}
	r.boot, r.script = at, n.content
	if len(n.content) == 0 || n.content[0] != 131 { // the version byte of term_to_binary/1
		r.report.warn(fmt.Sprintf("%s does not look like a boot script (term_to_binary of {script, …})", at))
	}
	if dir := path.Dir(at); path.Dir(dir) == "releases" {
		r.version = path.Base(dir)
	}
	return nil
}

// releaseFiles returns the files of one release that end in suffix, sorted.
func (r *release) releaseFiles(version, suffix string) []string {
	return r.matching(func(p string) bool { return path.Dir(p) == "releases/"+version && strings.HasSuffix(p, suffix) })
}

// inReleases returns the files of this name in releases/*/, sorted.
func (r *release) inReleases(name string) []string {
	return r.matching(func(p string) bool {
		return strings.HasPrefix(p, "releases/") && path.Base(p) == name && path.Dir(path.Dir(p)) == "releases"
	})
}

// elsewhere returns the directories of the tree that are an installation.
func (r *release) elsewhere() []string {
	found := r.matching(func(p string) bool { return strings.HasSuffix(p, "/bin/start.boot") })
	for i, p := range found {
		found[i] = path.Dir(path.Dir(p))
	}
	return found
}

func (r *release) matching(match func(p string) bool) []string {
	var found []string
	for p, n := range r.tree.nodes {
		if n.kind != eboot.KindDirectory && match(p) {
			found = append(found, p)
		}
	}
	slices.Sort(found)
	return found
}

func (r *release) findConfig() {
	directories := []string{path.Dir(r.boot)}
	if r.version != "" {
		directories = append(directories, "releases/"+r.version)
	}
	for _, dir := range directories {
		if at, n := r.tree.file(path.Join(dir, "sys.config")); n != nil {
			r.sysConfig = at
			break
		}
		if _, n := r.tree.file(path.Join(dir, "sys.config.src")); n != nil {
			r.report.note(fmt.Sprintf("%s is a template that only a start script fills in: it is not used as sys.config", path.Join(dir, "sys.config.src")))
			break
		}
	}
	for _, dir := range directories {
		if _, n := r.tree.file(path.Join(dir, "runtime.exs")); n != nil {
			r.report.note(fmt.Sprintf("%s is evaluated on each slave, where eboot's loader puts it below TMPDIR", path.Join(dir, "runtime.exs")))
			break
		}
	}
}

// findERTS finds the ERTS version: the one given; the one of the erts-*
// directories; what start_erl.data says; what the .rel file of the release says.
func (r *release) findERTS() error {
	var installed []string
	for p, n := range r.tree.nodes {
		if v, ok := strings.CutPrefix(p, "erts-"); ok && n.kind == eboot.KindDirectory && eboot.CheckERTS(v) == nil {
			installed = append(installed, v)
		}
	}
	slices.SortFunc(installed, compareVersions)
	switch {
	case len(r.opts.ERTS) > 0:
		r.erts = slices.Clone(r.opts.ERTS)
		slices.SortFunc(r.erts, compareVersions)
		r.erts = slices.Compact(r.erts)
		if len(installed) > 0 && !slices.ContainsFunc(installed, func(v string) bool { return slices.Contains(r.erts, v) }) {
			r.report.warn(fmt.Sprintf("the tree was made for ERTS %s and is published for %s", strings.Join(installed, ", "), strings.Join(r.erts, ", ")))
		}
	case len(installed) > 1 && slices.Contains(installed, r.startERTS):
		r.erts = []string{r.startERTS}
		r.report.note(fmt.Sprintf("the tree holds ERTS %s; took %s, which releases/start_erl.data names (--erts V for another)", strings.Join(installed, ", "), r.startERTS))
	case len(installed) > 1:
		r.erts = installed[len(installed)-1:]
		r.report.note(fmt.Sprintf("the tree holds ERTS %s; took the newest (--erts V for another)", strings.Join(installed, ", ")))
	case len(installed) == 1:
		r.erts = installed
		if r.startERTS != "" && r.startERTS != installed[0] {
			r.report.warn(fmt.Sprintf("releases/start_erl.data names ERTS %s, the tree holds %s: took what it holds", r.startERTS, installed[0]))
		}
	case r.startERTS != "":
		r.erts = []string{r.startERTS}
	default:
		v := r.relERTS()
		if v == "" {
			return fmt.Errorf("no ERTS version: the tree has no erts-V directory, no releases/start_erl.data and no .rel file that names one; pass --erts V: %w", eboot.ErrInvalid)
		}
		r.erts = []string{v}
		r.report.note(fmt.Sprintf("took ERTS %s from the .rel file: the tree itself holds none", v))
	}
	return nil
}

// relERTSTerm is the element {erts, "V"} of {release, …}: see rel(4) of OTP.
var relERTSTerm = regexp.MustCompile(`\{\s*erts\s*,\s*"([^"]*)"\s*\}`)

// relERTS returns the version that all .rel files of the release agree on.
func (r *release) relERTS() string {
	found := ""
	for _, p := range r.releaseFiles(r.version, ".rel") {
		_, n := r.tree.file(p)
		if n == nil {
			continue
		}
		m := relERTSTerm.FindSubmatch(n.content)
		if m == nil || eboot.CheckERTS(string(m[1])) != nil || found != "" && found != string(m[1]) {
			return ""
		}
		found = string(m[1])
	}
	return found
}

// compareVersions orders "9.3" before "13.1.5", and "15.0-rc1" before "15.0".
func compareVersions(a, b string) int {
	a, preA, _ := strings.Cut(a, "-")
	b, preB, _ := strings.Cut(b, "-")
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		x, errX := strconv.ParseUint(as[i], 10, 64)
		y, errY := strconv.ParseUint(bs[i], 10, 64)
		if errX != nil || errY != nil {
			if c := strings.Compare(as[i], bs[i]); c != 0 {
				return c
			}
		}
		if x != y {
			if x < y {
				return -1
			}
			return 1
		}
	}
	if len(as) != len(bs) {
		return len(as) - len(bs)
	}
	if (preA == "") != (preB == "") {
		return len(preB) - len(preA)
	}
	return strings.Compare(preA, preB)
}

// layout tells by what only one tool makes.
func (r *release) layout() string {
	has := func(p string) bool { return r.tree.nodes[p] != nil }
	dir := "releases/" + r.version + "/"
	switch {
	case has(dir + "consolidated"), has(dir + "remote.vm.args"):
		return LayoutMix
	case has("bin/nodetool"), has("bin/install_upgrade.escript"):
		return LayoutRebar3
	case has(dir + "OTP_VERSION"), has("bin/start.boot") && has("bin/start_clean.boot"):
		return LayoutOTP
	case len(r.releaseFiles(r.version, ".rel")) > 0 && !has("bin"):
		return LayoutSystools
	}
	return LayoutOther
}

// found tells what was found.
func (r *release) found() Found {
	f := Found{ERTS: r.erts, BootScript: r.boot, SysConfig: r.sysConfig, Layout: r.layout()}
	f.Variables = r.placeVariables(bootVariables(r.script))
	f.Notes = r.report.notes
	return f
}
