module sealane.example/interop

go 1.24.0
