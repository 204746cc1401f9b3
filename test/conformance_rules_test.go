package test

import (
	"archive/zip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"eboot/internal/testutil"
)

// A rule allows one difference between erl_boot_server and eboot, and says why it is
// there. docs/CONFORMANCE.md lists exactly these rules. A rule is given both outcomes of one probe
// and returns them with the difference that it allows taken away; whatever is still
// different after all rules is a failure.
type rule struct {
	name   string // as in docs/CONFORMANCE.md
	reason string // as in docs/CONFORMANCE.md
	allow  func(p *probe, otp, eboot outcome) (outcome, outcome)
}

// Fields of the 14-tuple #file_info{}, kernel/include/file.hrl.
const (
	infoSize = 1 + iota
	infoType
	infoAccess
	infoAccessed
	infoModified
	infoChanged
	infoMode
	infoLinks
	infoMajorDevice
	infoMinorDevice
	infoInode
	infoOwner
	infoGroup
)

var rules = []rule{
	{
		"list order",
		"The reference gives the names as its file system happens to hold them, eboot sorted; no client depends on an order.",
		func(_ *probe, otp, eboot outcome) (outcome, outcome) { return sortNames(otp), sortNames(eboot) },
	},
	{
		"access and status times",
		"A bundle keeps the modification time of a file and no other; eboot answers it for all three.",
		sameFields(infoAccessed, infoChanged),
	},
	{
		"time of the root",
		"A manifest has entries for what is in the tree, not for the root itself; eboot answers the newest time in the tree.",
		timeOfRoot,
	},
	{
		"inode, device and links",
		"Numbers of the server's disk mean nothing to a node that does not mount it.",
		sameFields(infoLinks, infoMajorDevice, infoMinorDevice, infoInode),
	},
	{
		"owner and group",
		"A bundle belongs to nobody: both are 0.",
		sameFields(infoOwner, infoGroup),
	},
	{
		"mode and access",
		"A bundle is read-only and knows one permission, executable or not: access is read, the permission bits 755 or 644.",
		sameFields(infoAccess, infoMode),
	},
	{
		"size of a directory",
		"What a directory takes on disk is a matter of the file system; eboot always answers 4096.",
		sizeOfDirectory,
	},
	{
		"host files",
		"eboot serves the tree of a bundle and nothing else: what lies outside the roots does not exist.",
		hostFiles,
	},
	{
		"sys.config",
		"Each root has a sys.config, the one of the release or an empty one, so that a slave's command line need not change with the version.",
		sysConfig,
	},
	{
		"dots are text",
		"eboot takes . and .. out of a name before it looks it up, so that no order of links and dots leads anywhere else; the reference goes through the directory that stands before the dots, and fails when it is not there.",
		dotsAreText,
	},
	{
		"links out of the tree",
		"A link that leaves the tree is followed when the bundle is published, if the publisher asks for it, and refused otherwise: in the bundle stands the file itself.",
		linksOut,
	},
	{
		"directory named like an archive",
		"The reference takes any name that ends in .ez for an archive and cannot read below such a directory; eboot looks at what is there.",
		directoryNamedEz,
	},
	{
		"broken archive",
		"A file that ends in .ez and is no archive, or an archive of nothing, is an ordinary file to eboot, which can be read; the reference answers einval, or nothing at all.",
		brokenArchive,
	},
	{
		"untidy names in archives",
		"Inside an archive the reference compares names letter by letter, so that a doubled slash, a dot or a slash at the end is another name; eboot treats them as everywhere else.",
		untidyArchiveName,
	},
	{
		"NUL below an archive",
		"A name with a NUL in it is refused everywhere, as badarg; below what is named like an archive the reference says that there is no such file.",
		nulInArchive,
	},
	{
		"directory in an archive read as a file",
		"With a slash at the end of its name, the reference answers a directory in an archive as an empty file; eboot says that there is no such file.",
		archiveDirectoryAsFile,
	},
	{
		"names that are no text",
		"The process that serves the connection crashes in the reference, which closes it; eboot answers badarg and goes on.",
		namesNoText,
	},
	{
		"undecodable frames",
		"The reference sends its stack along with the badarg, its file names and the frame included; eboot sends badarg.",
		undecodable,
	},
	{
		"terms that no loader sends",
		"Floats and deeply nested terms are not decoded at all.",
		unusualTerms,
	},
	{
		"compressed terms",
		"A compressed term of a few bytes can take gigabytes in memory; no loader sends one, and eboot decodes none.",
		forProbe("compressed term", func(eboot outcome) bool { return testutil.Format(eboot.reply) == "{error,badarg}" }),
	},
	{
		"frames above 64 KiB",
		"The reference takes frames of any length into memory, for any client; eboot closes the connection.",
		forProbe("frame of 1 MiB", func(eboot outcome) bool { return eboot.closed }),
	},
}

// sameFields allows the given fields of a #file_info{} to differ.
func sameFields(fields ...int) func(*probe, outcome, outcome) (outcome, outcome) {
	return func(_ *probe, otp, eboot outcome) (outcome, outcome) {
		a, b := otp.fileInfo(), eboot.fileInfo()
		if a == nil || b == nil {
			return otp, eboot
		}
		a = slices.Clone(a)
		for _, f := range fields {
			a[f] = b[f]
		}
		return otp.withResult(a), eboot
	}
}

func sizeOfDirectory(_ *probe, otp, eboot outcome) (outcome, outcome) {
	a, b := otp.fileInfo(), eboot.fileInfo()
	if a == nil || b == nil || a[infoType] != testutil.Atom("directory") || b[infoType] != testutil.Atom("directory") {
		return otp, eboot
	}
	a = slices.Clone(a)
	a[infoSize] = b[infoSize]
	return otp.withResult(a), eboot
}

// isRoot reports whether the probe names the root, through links perhaps.
func (p *probe) isRoot() bool {
	real, err := filepath.EvalSymlinks(p.clean)
	return err == nil && real == p.root
}

func timeOfRoot(p *probe, otp, eboot outcome) (outcome, outcome) {
	if !p.isRoot() {
		return otp, eboot
	}
	return sameFields(infoModified)(p, otp, eboot)
}

func hostFiles(p *probe, otp, eboot outcome) (outcome, outcome) {
	if p.clean == "" || p.inside() || eboot.failure() != "enoent" {
		return otp, eboot
	}
	return eboot, eboot
}

func sysConfig(p *probe, otp, eboot outcome) (outcome, outcome) {
	switch {
	case p.isRoot() && eboot.command() == "list_dir" && eboot.good() != nil:
		names := eboot.good().(testutil.List)
		without := slices.DeleteFunc(slices.Clone(names), func(name any) bool {
			text, _ := testutil.TextOf(name)
			return text == "sys.config"
		})
		return otp, eboot.withResult(without)
	case p.clean == p.root+"/sys.config" && otp.failure() == "enoent":
		return eboot, eboot
	}
	return otp, eboot
}

// dotsAreText allows eboot to answer a name with dots in it as the name without
// them: what stands there on disk says what that must be.
func dotsAreText(p *probe, otp, eboot outcome) (outcome, outcome) {
	if !slices.Contains(strings.Split(p.path, "/"), "..") || !p.inside() {
		return otp, eboot
	}
	if !strings.Contains(p.clean, ".ez") && !answersFor(p.clean, eboot) {
		return otp, eboot
	}
	return eboot, eboot
}

// answersFor reports whether o can be the answer for the file or directory name.
func answersFor(name string, o outcome) bool {
	info, err := os.Stat(name)
	if err != nil {
		return o.failure() != ""
	}
	want := testutil.Atom("regular")
	if info.IsDir() {
		want = "directory"
	}
	switch o.command() {
	case "get":
		return info.IsDir() == (o.failure() == "eisdir")
	case "list_dir":
		return info.IsDir() == (o.failure() == "")
	}
	i := o.fileInfo()
	return i != nil && i[infoType] == want
}

func linksOut(p *probe, otp, eboot outcome) (outcome, outcome) {
	a, b := otp.fileInfo(), eboot.fileInfo()
	if a == nil || b == nil || a[infoType] != testutil.Atom("symlink") || b[infoType] != testutil.Atom("regular") {
		return otp, eboot
	}
	target, err := filepath.EvalSymlinks(p.clean)
	if err != nil || strings.HasPrefix(target, p.root+"/") {
		return otp, eboot
	}
	return eboot, eboot
}

// archive returns the name up to the first component that ends in .ez, and what
// stands there; nil: nothing does.
func (p *probe) archive() (string, os.FileInfo) {
	for i, component := range strings.Split(p.clean, "/") {
		if strings.HasSuffix(component, ".ez") {
			name := strings.Join(strings.Split(p.clean, "/")[:i+1], "/")
			info, err := os.Stat(name)
			if err != nil {
				return name, nil
			}
			return name, info
		}
	}
	return "", nil
}

func directoryNamedEz(p *probe, otp, eboot outcome) (outcome, outcome) {
	name, info := p.archive()
	if info == nil || !info.IsDir() {
		return otp, eboot
	}
	if _, err := os.Stat(p.clean); p.clean != name && err != nil && eboot.failure() == "" {
		return otp, eboot
	}
	return eboot, eboot
}

func brokenArchive(p *probe, otp, eboot outcome) (outcome, outcome) {
	name, info := p.archive()
	if info == nil || !info.Mode().IsRegular() {
		return otp, eboot
	}
	if r, err := zip.OpenReader(name); err == nil {
		defer func() { _ = r.Close() }()
		if len(r.File) > 0 {
			return otp, eboot
		}
	}
	if p.clean != name && eboot.failure() != "enotdir" || p.clean == name && !answersFor(name, eboot) {
		return otp, eboot
	}
	return eboot, eboot
}

func untidyArchiveName(p *probe, otp, eboot outcome) (outcome, outcome) {
	untidy := strings.Contains(p.path, "//") || strings.Contains(p.path, "/./") || strings.HasSuffix(p.path, "/.") || strings.HasSuffix(p.path, "/")
	if _, info := p.archive(); info == nil || !untidy || otp.failure() == "" || eboot.failure() != "" {
		return otp, eboot
	}
	return eboot, eboot
}

func nulInArchive(p *probe, otp, eboot outcome) (outcome, outcome) {
	if !strings.Contains(p.path, ".ez/") || !strings.Contains(p.path, "\x00") || otp.failure() == "" || eboot.failure() != "badarg" {
		return otp, eboot
	}
	return eboot, eboot
}

func archiveDirectoryAsFile(p *probe, otp, eboot outcome) (outcome, outcome) {
	content, ok := otp.good().([]byte)
	if _, info := p.archive(); info == nil || !ok || len(content) > 0 || !strings.HasSuffix(p.path, "/") || eboot.failure() != "enoent" {
		return otp, eboot
	}
	return eboot, eboot
}

func namesNoText(p *probe, otp, eboot outcome) (outcome, outcome) {
	if p.path != "" || !otp.closed || eboot.failure() != "badarg" {
		return otp, eboot
	}
	return eboot, eboot
}

func undecodable(_ *probe, otp, eboot outcome) (outcome, outcome) {
	t, ok := otp.reply.(testutil.Tuple)
	if !ok || len(t) != 2 || t[0] != testutil.Atom("error") {
		return otp, eboot
	}
	reason, ok := t[1].(testutil.Tuple)
	if !ok || len(reason) != 2 || reason[0] != testutil.Atom("badarg") {
		return otp, eboot
	}
	return outcome{reply: testutil.Tuple{testutil.Atom("error"), testutil.Atom("badarg")}}, eboot
}

func unusualTerms(p *probe, otp, eboot outcome) (outcome, outcome) {
	if !strings.Contains(p.text, "float") && !strings.Contains(p.text, "deep") || testutil.Format(eboot.reply) != "{error,badarg}" {
		return otp, eboot
	}
	if otp.failure() != "badarg" && testutil.Format(otp.reply) != "{error,unknown_command}" {
		return otp, eboot
	}
	return eboot, eboot
}

// forProbe allows the difference of one probe when eboot does what it should.
func forProbe(text string, right func(eboot outcome) bool) func(*probe, outcome, outcome) (outcome, outcome) {
	return func(p *probe, otp, eboot outcome) (outcome, outcome) {
		if p.text != text || !right(eboot) {
			return otp, eboot
		}
		return eboot, eboot
	}
}

// outcome is what a server did with one request.
type outcome struct {
	reply  any  // decoded, long binaries condensed; nil when closed
	closed bool // the connection was closed instead
}

func (o outcome) String() string {
	if o.closed {
		return "connection closed"
	}
	return testutil.Format(o.reply)
}

// good returns what stands in {Command, {ok, Result}}, else nil.
func (o outcome) good() any {
	if t, ok := o.reply.(testutil.Tuple); ok && len(t) == 2 {
		if r, ok := t[1].(testutil.Tuple); ok && len(r) == 2 && r[0] == testutil.Atom("ok") {
			return r[1]
		}
	}
	return nil
}

// failure returns the atom in {Command, {error, Atom}}, else "".
func (o outcome) failure() string {
	if t, ok := o.reply.(testutil.Tuple); ok && len(t) == 2 {
		if r, ok := t[1].(testutil.Tuple); ok && len(r) == 2 && r[0] == testutil.Atom("error") {
			reason, _ := r[1].(testutil.Atom)
			return string(reason)
		}
	}
	return ""
}

// command returns what the reply says that it answers.
func (o outcome) command() string {
	if t, ok := o.reply.(testutil.Tuple); ok && len(t) == 2 {
		command, _ := t[0].(testutil.Atom)
		return string(command)
	}
	return ""
}

func (o outcome) fileInfo() testutil.Tuple {
	if t, ok := o.good().(testutil.Tuple); ok && len(t) == 14 && t[0] == testutil.Atom("file_info") {
		return t
	}
	return nil
}

// withResult is the same good reply with another result.
func (o outcome) withResult(result any) outcome {
	return outcome{reply: testutil.Tuple{testutil.Atom(o.command()), testutil.Tuple{testutil.Atom("ok"), result}}}
}

// sortNames sorts the names of a list_dir reply.
func sortNames(o outcome) outcome {
	names, ok := o.good().(testutil.List)
	if !ok || o.command() != "list_dir" {
		return o
	}
	names = slices.Clone(names)
	slices.SortFunc(names, func(a, b any) int { return strings.Compare(testutil.Format(a), testutil.Format(b)) })
	return o.withResult(names)
}

// ruleHits counts, over all tests of this file, how often each rule took a
// difference away.
type ruleHits map[string]int

// reconcile applies the rules to two outcomes that differ and reports whether that
// makes them equal.
func (h ruleHits) reconcile(p *probe, otp, eboot outcome) bool {
	for _, r := range rules {
		a, b := r.allow(p, otp, eboot)
		if !reflect.DeepEqual(a, otp) || !reflect.DeepEqual(b, eboot) {
			otp, eboot = a, b
			h[r.name]++
		}
		if reflect.DeepEqual(otp, eboot) {
			return true
		}
	}
	return false
}

var documentedRule = regexp.MustCompile(`(?m)^\| \*\*(.+?)\*\* \| (.+?) \|$`)

// The document lists the rules that the test applies, all of them, word by word.
func TestConformanceDocumentListsTheRules(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "CONFORMANCE.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range documentedRule.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	for _, r := range rules {
		if got := documented[r.name]; got != r.reason {
			t.Errorf("rule %q: document says %q, the test %q", r.name, got, r.reason)
		}
		delete(documented, r.name)
	}
	for name := range documented {
		t.Errorf("document allows %q, of which the test knows nothing", name)
	}
}
