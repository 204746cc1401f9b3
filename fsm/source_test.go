package fsm

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Everything that would let two servers make different states out of one log.
var (
	allowedImports = map[string]bool{
		"bytes": true, "cmp": true, "crypto/sha256": true, "encoding/binary": true, "encoding/hex": true, "encoding/json": true,
		"errors": true, "fmt": true, "io": true, "iter": true, "maps": true, "net/netip": true, "slices": true, "strings": true,
		"sync": true, "sync/atomic": true, "time": true,
		"eboot": true, "eboot/rollout": true, "github.com/gaissmai/bart": true,
	}
	allowedOfTime = map[string]bool{"Time": true, "UnixMilli": true}
	unorderedMaps = map[string]bool{"Keys": true, "Values": true, "All": true}
)

// TestSourceIsPure reads the source of this package and of rollout, which applies a part of
// the log, with types: a clock, randomness, I/O or the order of a Go map in it fails
// here, with the place.
func TestSourceIsPure(t *testing.T) {
	for _, directory := range []string{".", "../rollout"} {
		t.Run(directory, func(t *testing.T) { checkSources(t, directory) })
	}
}

func checkSources(t *testing.T, directory string) {
	fset := token.NewFileSet()
	names, err := filepath.Glob(filepath.Join(directory, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", exportData(t))}
	if len(files) < 3 {
		t.Fatalf("only %d files", len(files))
	}
	if _, err := config.Check("eboot/"+files[0].Name.Name, fset, files, info); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		checkPure(t, fset, info, f)
	}
}

// exportData finds the compiled packages that this one imports.
func exportData(t *testing.T) func(path string) (io.ReadCloser, error) {
	t.Helper()
	out, err := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[path] = file
	}
	return func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
}

func checkPure(t *testing.T, fset *token.FileSet, info *types.Info, f *ast.File) {
	sorted := map[ast.Expr]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			if path := strings.Trim(n.Path.Value, `"`); !allowedImports[path] {
				t.Errorf("%s: imports %s: the state machine has no clock, no randomness and no I/O; allow it here when it brings none", fset.Position(n.Pos()), path)
			}
		case *ast.RangeStmt:
			if _, isMap := info.TypeOf(n.X).Underlying().(*types.Map); isMap {
				t.Errorf("%s: ranges over a map, whose order differs on every server; range over slices.Sorted(maps.Keys(…))", fset.Position(n.Pos()))
			}
		case *ast.GoStmt, *ast.SelectStmt:
			t.Errorf("%s: a goroutine or select: its order differs on every server", fset.Position(n.Pos()))
		case *ast.AssignStmt:
			for _, target := range n.Lhs {
				checkAssigned(t, fset, info, target)
			}
		case *ast.IncDecStmt:
			checkAssigned(t, fset, info, n.X)
		case *ast.BasicLit:
			if n.Kind == token.FLOAT || n.Kind == token.IMAG {
				t.Errorf("%s: a fraction: processors round differently", fset.Position(n.Pos()))
			}
		case *ast.CallExpr:
			if isPackageFunction(info, n.Fun, "slices", "Sorted") {
				for _, argument := range n.Args {
					sorted[argument] = true
				}
			}
			if s, ok := n.Fun.(*ast.SelectorExpr); ok && unorderedMaps[s.Sel.Name] && isPackageFunction(info, n.Fun, "maps", s.Sel.Name) && !sorted[n] {
				t.Errorf("%s: maps.%s without slices.Sorted around it: its order differs on every server", fset.Position(n.Pos()), s.Sel.Name)
			}
		case *ast.SelectorExpr:
			if object := info.Uses[n.Sel]; object != nil && object.Pkg() != nil && object.Pkg().Path() == "time" && object.Parent() == object.Pkg().Scope() && !allowedOfTime[n.Sel.Name] {
				t.Errorf("%s: time.%s: the only time is Header.At", fset.Position(n.Pos()), n.Sel.Name)
			}
		}
		return true
	})
}

// checkAssigned refuses an assignment to a variable of the package, or into one: the
// state is in State alone.
func checkAssigned(t *testing.T, fset *token.FileSet, info *types.Info, target ast.Expr) {
	for {
		switch e := target.(type) {
		case *ast.IndexExpr:
			target = e.X
			continue
		case *ast.SelectorExpr:
			target = e.X
			continue
		case *ast.StarExpr:
			target = e.X
			continue
		case *ast.Ident:
			if v, ok := info.Uses[e].(*types.Var); ok && v.Parent() == v.Pkg().Scope() {
				t.Errorf("%s: changes the package's variable %s: what a log leads to would depend on what this process did before", fset.Position(e.Pos()), e.Name)
			}
		}
		return
	}
}

func isPackageFunction(info *types.Info, e ast.Expr, path, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != name {
		return false
	}
	object := info.Uses[s.Sel]
	return object != nil && object.Pkg() != nil && object.Pkg().Path() == path
}
