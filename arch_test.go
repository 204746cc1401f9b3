package eboot_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules below keep the architecture visible: each has its reason, which is
// what a failure prints. docs/ARCHITECTURE.md draws the same picture.

// mayImport lists, for each package, which other packages of eboot it may
// import in its own code (tests are freer). "*" means any.
var mayImport = []struct {
	pkg     string
	imports []string
	reason  string
}{
	{"eboot", nil, "the vocabulary imports only the standard library: everything else imports it"},
	{"eboot/bootproto/etf", nil, "the term format is a codec on bytes: it knows nothing of eboot"},
	{"eboot/bootproto", []string{"eboot/bootproto/etf"}, "the wire knows no disk, no Raft, no HTTP and no policy, so that it can be tested against real clients alone"},
	{"eboot/loader", []string{"eboot", "eboot/bootproto/etf"}, "boot scripts are rewritten from bytes and an interface to the tree: no store, no wire"},
	{"eboot/filestore", []string{"eboot", "eboot/internal/fsutil", "eboot/filestore/internal/lru"}, "blobs are bytes with a digest: the store does not know what they are for"},
	{"eboot/filestore/internal/lru", nil, "a leaf"},
	{"eboot/filestore/bundlefs", []string{"eboot", "eboot/filestore", "eboot/filestore/internal/lru"}, "a tree is a manifest and its blobs; the wire, the whitelist and the channels are somebody else's"},
	{"eboot/ingest", []string{"eboot"}, "reading what stands at a path is the client's job: no server, no store"},
	{"eboot/rollout", []string{"eboot"}, "how a rollout goes on is a function of what is known of it: no state, no fleet"},
	{"eboot/fsm", []string{"eboot", "eboot/rollout"}, "the state machine is pure: the same log must give the same state on every server"},
	{"eboot/cluster", []string{"eboot", "eboot/internal/fsutil"}, "consensus gets bytes agreed on and must not know what they mean"},
	{"eboot/api", []string{"eboot"}, "the API speaks in root types through interfaces of its own, so that a client needs neither Raft nor a store"},
	{"eboot/fleet", []string{"eboot", "eboot/internal/fsutil"}, "what was observed of slaves never goes through Raft"},
	{"eboot/signature", []string{"eboot"}, "signatures are made and checked on bytes: whose are wanted, and where, is somebody else's"},
	{"eboot/config", []string{"eboot", "eboot/internal/fsutil"}, "configuration is text that was checked: it starts nothing"},
	{"eboot/internal/fsutil", []string{"eboot"}, "files, whatever is in them"},
	{"eboot/internal/beamfile", []string{"eboot"}, "it reads the chunks of a file: it does not know whose file that is"},
	{"eboot/cluster/gossip", []string{"eboot", "eboot/internal/fsutil"}, "gossip suggests who is there; it decides nothing and knows no Raft"},
	{"eboot/filestore/mirror", []string{"eboot", "eboot/filestore"}, "blobs are copied by digest: what bundle they belong to is somebody else's"},
	{"eboot/internal/identity", []string{"eboot", "eboot/internal/fsutil"}, "it reads and makes certificates: who is let in where is somebody else's"},
	{"eboot/internal/peerport", []string{"eboot"}, "one port for several protocols: it knows none of them"},
	{"eboot/internal/peerrpc", []string{"eboot", "eboot/api"}, "servers describe things and errors to each other as they do to operators"},
	{"eboot/internal/systemd", nil, "a leaf"},
	{"eboot/internal/testnet", []string{"*"}, "tests may use everything"},
	{"eboot/internal/metrics", nil, "metrics read numbers through functions: they know no component"},
	{"eboot/internal/sockholder", nil, "it holds sockets, and does not know what is said over them"},
	{"eboot/internal/sockowner", nil, "a leaf"},
	{"eboot/internal/servingcache", []string{"eboot", "eboot/internal/fsutil"}, "the serving cache keeps bytes with an index: it does not know what a state is"},
	{"eboot/internal/testutil", []string{"*"}, "tests may use everything"},
	{"eboot/internal/agent", []string{"*"}, "the composition root is where siblings meet"},
	{"eboot/scripts/tools/...", nil, "it reads programs that are finished; a module of its own, so that its requirements are not eboot's"},
	{"eboot/cmd/...", []string{"*"}, "main is a shell around everything"},
	{"eboot/test/...", []string{"*"}, "whole-system tests use everything"},
}

// onlyFrom confines third-party modules.
var onlyFrom = []struct {
	module string
	pkgs   []string
	reason string
}{
	{"github.com/hashicorp/raft", []string{"eboot/cluster"}, "consensus has one owner"},
	{"github.com/hashicorp/raft-boltdb", []string{"eboot/cluster"}, "consensus has one owner"},
	{"go.etcd.io/bbolt", []string{"eboot/cluster"}, "consensus has one owner"},
	{"github.com/hashicorp/memberlist", []string{"eboot/cluster/gossip"}, "gossip only suggests addresses; membership is the cluster's"},
	{"github.com/prometheus", []string{"eboot/internal/metrics"}, "metrics go through one registry that is passed in"},
	{"github.com/hashicorp/go-metrics", []string{"eboot/internal/metrics"}, "metrics go through one registry that is passed in"},
	{"github.com/spf13/cobra", []string{"eboot/cmd/eboot"}, "flags are the command's business"},
	{"github.com/goccy/go-yaml", []string{"eboot/config"}, "files become a checked Config in one place"},
	{"github.com/gaissmai/bart", []string{"eboot/fsm"}, "the whitelist is part of the replicated state"},
	{"github.com/klauspost/compress", []string{"eboot/ingest", "eboot/filestore/bundlefs"}, "archives are read where they come in"},
	{"golang.org/x/crypto", []string{"eboot/signature"}, "what the standard library lacks is for minisign's formats alone"},
	{"eboot/signature", []string{"eboot/cmd/eboot", "eboot/internal/agent"}, "the replicated state keeps signatures and never judges them: keys are each server's own"},
	{"eboot/config", []string{"eboot/cmd/eboot", "eboot/internal/agent"}, "components take options of their own, not the file's keys"},
	{"github.com/coreos/go-systemd", []string{"eboot/internal/systemd"}, "the service manager is told in one place"},
	{"eboot/internal/testnet", []string{"eboot/internal/testnet", "eboot/test/..."}, "only tests may use test code"},
	{"eboot/internal/testutil", []string{"eboot/internal/testutil", "eboot/internal/testnet", "eboot/test/..."}, "only tests may use test code"},
}

// forbiddenCalls are selectors that must not stand in a package's own code.
var forbiddenCalls = []struct {
	pkg    string // pattern
	call   string
	reason string
}{
	{"eboot", "time.Now", "the vocabulary holds no state and reads no clock"},
	{"eboot/fsm", "time.Now", "the proposer puts the time into the command: the log must replay to the same state for ever"},
	{"eboot/fsm", "time.Since", "the state machine has no clock"},
	{"eboot/rollout", "time.Now", "it is part of the state machine, which has no clock"},
	{"eboot/rollout", "time.Since", "it is part of the state machine, which has no clock"},
	{"eboot/bootproto", "os.Open", "the wire knows no disk: a file is memory without a name, or given to it"},
	{"eboot/bootproto", "os.OpenFile", "the wire knows no disk: a file is memory without a name, or given to it"},
	{"eboot/bootproto", "os.ReadFile", "the wire knows no disk: a file is memory without a name, or given to it"},
	{"eboot/bootproto", "os.Create", "the wire knows no disk: a file is memory without a name, or given to it"},
	{"...", "log.Fatal", "only main may end the process"},
	{"...", "log.Fatalf", "only main may end the process"},
	{"...", "time.Sleep", "wait for a condition with a deadline, a timer or a context"},
}

// forbiddenImports are packages of the standard library that would break a promise.
var forbiddenImports = []struct{ pkg, path, reason string }{
	{"eboot", "os", "the vocabulary does no I/O"},
	{"eboot", "net", "the vocabulary does no I/O"},
	{"eboot/fsm", "os", "the state machine does no I/O"},
	{"eboot/fsm", "net", "the state machine does no I/O"},
	{"eboot/fsm", "math/rand", "the state machine is deterministic"},
	{"eboot/fsm", "math/rand/v2", "the state machine is deterministic"},
	{"eboot/fsm", "crypto/rand", "the state machine is deterministic"},
	{"eboot/rollout", "os", "it is part of the state machine, which does no I/O"},
	{"eboot/rollout", "math/rand/v2", "it is part of the state machine, which is deterministic"},
	{"eboot/bootproto", "net/http", "the wire knows no HTTP"},
}

const (
	maxFileLines    = 520
	maxStructFields = 16
)

type sourceFile struct {
	path, pkg string
	test      bool
	file      *ast.File
	lines     int
}

func readSources(t *testing.T) []sourceFile {
	t.Helper()
	var sources []sourceFile
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || p != "." && strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		sources = append(sources, sourceFile{
			path: p, pkg: path.Join("eboot", filepath.ToSlash(filepath.Dir(p))), test: strings.HasSuffix(p, "_test.go"),
			file: f, lines: fset.File(f.Pos()).LineCount(),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 20 {
		t.Fatalf("only %d source files found: the rules would check nothing", len(sources))
	}
	return sources
}

func matches(pattern, pkg string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "..."); ok {
		return strings.HasPrefix(pkg+"/", prefix)
	}
	return pattern == pkg
}

func within(module, imported string) bool {
	return imported == module || strings.HasPrefix(imported, module+"/")
}

func TestArchitecture(t *testing.T) {
	known := map[string]bool{}
	for _, s := range readSources(t) {
		if !s.test {
			checkImports(t, s, known)
			checkShape(t, s)
		}
		checkCalls(t, s)
	}
	for _, rule := range mayImport {
		if !strings.HasSuffix(rule.pkg, "...") && !known[rule.pkg] {
			t.Errorf("arch_test.go has a rule for %s, which does not exist: delete the rule", rule.pkg)
		}
	}
}

func checkImports(t *testing.T, s sourceFile, known map[string]bool) {
	rule := slices.IndexFunc(mayImport, func(r struct {
		pkg     string
		imports []string
		reason  string
	}) bool {
		return matches(r.pkg, s.pkg)
	})
	if rule < 0 {
		t.Errorf("%s: package %s has no rule in arch_test.go: decide what it may import, and say why", s.path, s.pkg)
		return
	}
	known[s.pkg] = true
	for _, spec := range s.file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		allowed := mayImport[rule].imports
		if within("eboot", imported) && !slices.Contains(allowed, "*") && !slices.Contains(allowed, imported) {
			t.Errorf("%s imports %s: %s", s.path, imported, mayImport[rule].reason)
		}
		for _, r := range onlyFrom {
			if (within(r.module, imported) || strings.HasPrefix(imported, r.module+"-")) && !slices.ContainsFunc(r.pkgs, func(p string) bool { return matches(p, s.pkg) }) &&
				!slices.ContainsFunc(onlyFrom, func(o struct {
					module string
					pkgs   []string
					reason string
				}) bool {
					return len(o.module) > len(r.module) && within(o.module, imported)
				}) {
				t.Errorf("%s imports %s, which only %s may: %s", s.path, imported, strings.Join(r.pkgs, ", "), r.reason)
			}
		}
		for _, r := range forbiddenImports {
			if r.pkg == s.pkg && r.path == imported {
				t.Errorf("%s imports %s: %s", s.path, imported, r.reason)
			}
		}
	}
}

func checkCalls(t *testing.T, s sourceFile) {
	ast.Inspect(s.file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := selector.X.(*ast.Ident)
		if !ok {
			return true
		}
		call := x.Name + "." + selector.Sel.Name
		for _, r := range forbiddenCalls {
			if matches(r.pkg, s.pkg) && call == r.call && (!s.test || call == "time.Sleep") {
				t.Errorf("%s uses %s: %s", s.path, call, r.reason)
			}
		}
		return true
	})
}

func checkShape(t *testing.T, s sourceFile) {
	if s.lines > maxFileLines {
		t.Errorf("%s has %d lines, at most %d: a part wants out", s.path, s.lines, maxFileLines)
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				t.Errorf("%s has an init function: nothing registers itself, everything is passed in", s.path)
			}
		case *ast.TypeSpec:
			if st, ok := n.Type.(*ast.StructType); ok {
				if fields := st.Fields.NumFields(); fields > maxStructFields {
					t.Errorf("%s: struct %s has %d fields, at most %d: a part wants out", s.path, n.Name.Name, fields, maxStructFields)
				}
			}
		}
		return true
	})
	if s.file.Name.Name != "main" && s.file.Doc == nil && filepath.Base(s.path) == "doc.go" {
		t.Errorf("%s: doc.go without a package comment", s.path)
	}
}

func TestArchitectureRulesCanFail(t *testing.T) {
	// The matchers themselves: a rule that matches nothing would check nothing.
	for _, tc := range []struct {
		pattern, pkg string
		want         bool
	}{
		{"...", "eboot/fsm", true}, {"eboot/cmd/...", "eboot/cmd/eboot", true}, {"eboot/cmd/...", "eboot/config", false},
		{"eboot", "eboot", true}, {"eboot", "eboot/fsm", false},
	} {
		if got := matches(tc.pattern, tc.pkg); got != tc.want {
			t.Errorf("matches(%q, %q) = %v", tc.pattern, tc.pkg, got)
		}
	}
	if !within("eboot/api", "eboot/api") || within("eboot/api", "eboot/apis") {
		t.Error("within: a path prefix is not a string prefix")
	}
}
